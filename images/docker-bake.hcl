# All images at once, from the repository's root; `make images` calls it with the version and the revision:
#   docker buildx bake -f images/docker-bake.hcl                     for this machine
#   REGISTRY=registry.example.org/bugurt PLATFORMS=linux/amd64,linux/arm64 CACHE=registry.example.org/bugurt/cache \
#     docker buildx bake -f images/docker-bake.hcl --push            for a cluster
# Each variable is set by the environment variable of its name.

variable "REGISTRY" {
  default = "bugurt" # as [cluster] registry of bugurt.toml
}

variable "VERSION" {
  default = "0.1.0" # as in pyproject.toml
}

variable "REVISION" {
  default = "" # the git commit; a second tag, and a label
}

variable "SOURCE" {
  default = "" # the repository's URL, for a label
}

# python:3.12-slim of August 2026, the index of all platforms. `docker buildx imagetools inspect python:3.12-slim`
# tells today's digest.
variable "BASE" {
  default = "docker.io/library/python:3.12-slim@sha256:78387bc3881b8273120a12ebe6c1ab22b018ccc2c9adf565ae1ac9b536e184ea"
}

variable "PLATFORMS" {
  default = "" # separated by commas; empty: this machine's
}

variable "CACHE" {
  default = "" # a repository of a registry that keeps the layers of all stages
}

variable "TORCH_INDEX" {
  default = "" # of train: see its Dockerfile
}

variable "CUDA" {
  default = "" # of generate: "12" adds what it needs for NVIDIA GPUs
}

group "default" {
  targets = ["image"]
}

# Those for NVIDIA GPUs. train has CUDA by itself, where torch comes from the usual index.
group "gpu" {
  targets = ["train", "generate-cuda"]
}

target "common" {
  context   = "."
  platforms = compact(split(",", PLATFORMS))
  args = {
    BASE        = BASE
    VERSION     = VERSION
    REVISION    = REVISION
    SOURCE      = SOURCE
    TORCH_INDEX = TORCH_INDEX # only train has a use for it
    CUDA        = CUDA        # only generate has
  }
}

target "image" {
  name     = image
  matrix   = { image = ["scrape", "preprocess", "train", "generate", "driver", "s3"] }
  inherits = ["common"]

  dockerfile = "images/${image}/Dockerfile"
  tags       = [for tag in compact([replace(VERSION, "+", "-"), REVISION]) : "${REGISTRY}/${image}:${tag}"]
  cache-from = [for ref in compact([CACHE]) : "type=registry,ref=${ref}:${image}"]
  cache-to   = [for ref in compact([CACHE]) : "type=registry,ref=${ref}:${image},mode=max"]
}

target "generate-cuda" {
  inherits = ["generate"]
  args     = { CUDA = "12" }
  tags     = [for tag in compact([replace(VERSION, "+", "-"), REVISION]) : "${REGISTRY}/generate:${tag}-cuda"]

  cache-from = [for ref in compact([CACHE]) : "type=registry,ref=${ref}:generate-cuda"]
  cache-to   = [for ref in compact([CACHE]) : "type=registry,ref=${ref}:generate-cuda,mode=max"]
}
