"""``python -m jobs.preprocess``: the command of the preprocess container."""

if __name__ == "__main__":
    # Imported here: worker processes import this module, too, and need none of it.
    from jobs.preprocess.pipeline import run
    from jobs.specs import PreprocessSpec
    from jobs.stage import main

    main(PreprocessSpec, run)
