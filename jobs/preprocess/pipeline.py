"""The preprocess stage: posts → rules → duplicates → split → tokens → blocks → report.

Two passes of worker processes over the posts, with arrays of numbers in between; the texts themselves lie in
Arrow files of the working folder. Everything is put into the order of (channel, id) after the first pass, so what
comes out depends neither on the order of the shards nor on the number of workers.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.artifacts import ArtifactWriter
from jobs.posts import read_posts
from jobs.preprocess.clean import BUCKETS, COLUMNS, NO_DATE, Cleaned, CleanTask, Example, clean_batch, merge_examples
from jobs.preprocess.corpus import Ints, Rows
from jobs.preprocess.duplicates import UnionFind, capped, clusters
from jobs.preprocess.encode import Encoded, EncodeTask, encode_rows
from jobs.preprocess.leaks import leaks
from jobs.preprocess.measure import Measures, form_of, share
from jobs.preprocess.output import DatasetWriter, write_excluded
from jobs.preprocess.pool import Workers, usable_cores
from jobs.preprocess.profile import Profile, builtin_text, parse_profile
from jobs.preprocess.report import Findings, build_report
from jobs.preprocess.sampling import language_shares, sample_texts, token_economy
from jobs.preprocess.split import held_out
from jobs.preprocess.tokenizer import SCRATCH, TokenizerInfo, is_scratch, load_pretrained, train_bpe
from jobs.similarity import Banding, Hashes
from jobs.specs import DataError, PreprocessSpec, SpecError
from jobs.stage import StageContext
from jobs.style import STYLE_FILE, Style

BATCH_POSTS = 4096
BATCH_BYTES = 32 * 1024 * 1024
CHUNK_POSTS = 4096  # a task of the second pass
#: Share of capitals among cased letters from which a channel counts as one that writes in capitals.
UPPER_CASE = 0.75
#: A BPE is trained on at most so many characters of the train posts, evenly spread; more changes nothing in it.
BPE_CHARACTERS = 100_000_000

Context = StageContext[PreprocessSpec]


@dataclass(slots=True)
class Corpus:
    """All posts that the rules kept, in the order of (channel, id), one entry a post; and what was counted."""

    rows: Rows
    ids: Ints
    channels: list[str]
    channel_codes: Ints
    dates: Ints
    digests: Hashes
    keys: Hashes
    upper: Ints
    lower: Ints
    buckets: Ints
    dropped: Rows
    posts: int
    dropped_by: Counter[str]
    changed_by: Counter[str]
    examples: dict[tuple[str, str], list[Example]]

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, number: int) -> str:
        """CHANNEL/ID of a post."""
        return f"{self.channels[self.channel_codes[number]]}/{self.ids[number]}"

    def in_time(self) -> Ints:
        """Each post's rank by (date, channel, id); posts without a date come first."""
        order = np.lexsort((np.arange(len(self)), self.dates))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        return rank


@dataclass(slots=True)
class Selection:
    """Which posts are in the dataset, and on which side."""

    stay: NDArray[np.bool_]
    first_equal: Ints
    roots: Ints
    kept: Ints  # numbers of the posts that stay
    cluster: Ints  # one entry a kept post
    held_out: NDArray[np.bool_]
    leaks_mended: int = 0


@dataclass(slots=True)
class Clock:
    """Seconds that each step took, for the log."""

    started: float = field(default_factory=time.perf_counter)
    steps: dict[str, float] = field(default_factory=dict)

    def lap(self, name: str) -> None:
        """The step that ends now."""
        now = time.perf_counter()
        self.steps[name] = now - self.started
        self.started = now


def load_profile_of(ctx: Context) -> tuple[Profile, str, str]:
    """The spec's profile, its TOML text and what to call its file in messages."""
    spec = ctx.spec
    if spec.profile_file is None:
        where = f"profile {spec.profile}"
        text = builtin_text(spec.profile)
    else:
        manifest = ctx.input("profile_file")
        if len(manifest.files) != 1:
            raise SpecError(
                f"profile_file: {manifest.ref} has {len(manifest.files)} files; a profile is one .toml file"
            )
        where = str(manifest.info.get("name") or manifest.files[0].path)
        data = ctx.store.read(manifest.ref, manifest.files[0], max_size=1024 * 1024)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            raise SpecError(f"{where}, line {line}: this is not UTF-8 text") from error
    profile = parse_profile(text, where)
    return (profile.with_masking() if spec.mask_pii else profile), text, where


def run(ctx: Context) -> None:
    """Make and commit the dataset. Raises DataError when there are no posts, or too few are left."""
    spec = ctx.spec
    profile, text, where = load_profile_of(ctx)
    ctx.input("posts")
    scratch = is_scratch(spec)
    clock = Clock()
    with Workers(spec.workers or usable_cores(), preload="jobs.preprocess.pipeline") as workers:
        tokenizer = None
        if not scratch:  # a model that cannot be had should not be noticed after all the work
            tokenizer = load_pretrained(spec, ctx.store, ctx.workdir / "base", ctx.workdir / "tokenizer")
            clock.lap("tokenizer")
        corpus = first_pass(ctx, text, where, workers)
        clock.lap("rules")
        if not len(corpus):
            raise DataError(_nothing_left(corpus, profile))
        chosen = select(ctx, corpus, workers)
        clock.lap("duplicates and split")
        case, restore, upper_share = choose_case(spec, profile, corpus, chosen)
        if tokenizer is None:
            ctx.progress.update(message="training the tokenizer")
            train = corpus.rows.part(chosen.kept[~chosen.held_out])
            tokenizer = train_bpe(
                bpe_texts(ctx, train, lower=case == "lower"), spec.vocab_size, ctx.workdir / "tokenizer", spec.model
            )
            clock.lap("tokenizer")
        writer = ctx.writer()
        second_pass(
            ctx, writer, corpus, chosen, tokenizer, workers, profile, clock,
            case=case, restore=restore, upper_share=upper_share,
        )  # fmt: skip


def _nothing_left(corpus: Corpus, profile: Profile) -> str:
    if not corpus.posts:
        return "the posts artefact holds no posts; look at what scrape read"
    most = ", ".join(f"{name} {count}" for name, count in corpus.dropped_by.most_common(3))
    return f"no post is left of {corpus.posts}: the rules of profile {profile.name} dropped all ({most})"


# -- first pass


def batches(ctx: Context) -> Iterator[pa.RecordBatch]:
    """The posts in batches of bounded size, whatever the sizes of the shards."""
    assert ctx.spec.posts is not None
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in read_posts(ctx.store, ctx.spec.posts, COLUMNS):
        ctx.check_stop()
        pieces = max(1, -(-batch.nbytes // BATCH_BYTES))
        step = max(1, -(-batch.num_rows // pieces))
        for start in range(0, batch.num_rows, step):
            waiting.append(batch.slice(start, step))
            rows += waiting[-1].num_rows
            if rows >= BATCH_POSTS // 2 or pieces > 1:
                yield _joined(waiting)
                waiting, rows = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[pa.RecordBatch]) -> pa.RecordBatch:
    return parts[0] if len(parts) == 1 else pa.concat_batches(parts)


def first_pass(ctx: Context, profile: str, where: str, workers: Workers) -> Corpus:
    """Clean all posts and put what is known of them into the canonical order."""
    folder = ctx.workdir / "rows"
    folder.mkdir()
    banding = Banding.for_threshold(ctx.spec.near_duplicates)
    tasks = (
        CleanTask(number, batch, folder, profile, where, ctx.spec.mask_pii, banding)
        for number, batch in enumerate(batches(ctx))
    )
    parts: list[Cleaned] = []
    buckets = np.zeros(BUCKETS, np.int64)
    dropped: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    examples: dict[tuple[str, str], list[Example]] = {}
    posts = 0
    for part in workers.map(clean_batch, tasks):
        buckets += part.buckets
        part.buckets = buckets[:0]
        dropped.update(part.dropped)
        changed.update(part.changed)
        merge_examples(examples, part.examples)
        posts += part.posts
        parts.append(part)
        ctx.progress.update(message="applying the rules", done=posts, unit="posts")
        ctx.check_stop()
    ctx.log.info("%d posts read; the rules keep %d", posts, posts - dropped.total())

    channels = sorted({c for p in parts for c in (*p.channels, *p.dropped_channels)})
    code = {name: number for number, name in enumerate(channels)}

    def recode(names: list[str], codes: Ints) -> Ints:
        return np.array([code[n] for n in names], np.int64)[codes] if len(codes) else codes

    kept_codes = _join([recode(p.channels, p.channel_codes) for p in parts])
    ids = _join([p.ids for p in parts])
    order = np.lexsort((ids, kept_codes))
    gone_codes = _join([recode(p.dropped_channels, p.dropped_codes) for p in parts])
    gone_ids = _join([p.dropped_ids for p in parts])
    gone_order = np.lexsort((gone_ids, gone_codes))
    wide = [np.zeros((0, banding.bands), np.uint64)]
    return Corpus(
        rows=_rows(folder, "kept", parts, [len(p.ids) for p in parts]).part(order),
        ids=ids[order],
        channels=channels,
        channel_codes=kept_codes[order],
        dates=_join([p.dates for p in parts])[order],
        digests=np.concatenate([p.digests for p in parts] or [np.zeros((0, 2), np.uint64)])[order],
        keys=np.concatenate([p.keys for p in parts] or wide)[order],
        upper=_join([p.upper for p in parts])[order],
        lower=_join([p.lower for p in parts])[order],
        buckets=buckets,
        dropped=_rows(folder, "dropped", parts, [len(p.dropped_ids) for p in parts]).part(gone_order),
        posts=posts,
        dropped_by=dropped,
        changed_by=changed,
        examples=examples,
    )


def _join(parts: list[Ints]) -> Ints:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _rows(folder: object, stem: str, parts: list[Cleaned], sizes: list[int]) -> Rows:
    files = np.repeat(np.array([p.number for p in parts], np.int64), sizes)
    rows = _join([np.arange(size, dtype=np.int64) for size in sizes])
    return Rows(folder, stem, files, rows)  # type: ignore[arg-type]


# -- duplicates and split


def select(ctx: Context, corpus: Corpus, workers: Workers) -> Selection:
    """Find clusters, cap them, split; and mend what the exact check of the split still finds."""
    spec = ctx.spec
    ctx.progress.update(message="looking for duplicates")

    def tick(done: int, total: int) -> None:
        ctx.progress.update(message="verifying near-duplicates", done=done, total=total, unit="pairs")
        ctx.check_stop()

    sets, first = clusters(corpus.rows, corpus.digests, corpus.keys, spec.near_duplicates, workers, tick)
    in_time = corpus.in_time()
    mended = 0
    for attempt in range(1000):
        chosen = _choose(spec, corpus, sets, first, in_time)
        ctx.progress.update(message="checking the split")
        train = np.flatnonzero(~chosen.held_out)
        held = np.flatnonzero(chosen.held_out)
        kept = corpus.rows.part(chosen.kept)
        found = leaks(
            kept.part(train), kept.part(held), corpus.buckets, spec.near_duplicates, ctx.workdir, workers, attempt
        )
        ctx.check_stop()
        if not len(found):
            break
        mended += len(found)
        for a, b in found.tolist():
            sets.union(int(chosen.kept[train[a]]), int(chosen.kept[held[b]]))
    else:
        raise RuntimeError("the split does not settle")
    if mended:
        ctx.log.info("the check of the split found %d pairs that MinHash had missed", mended)
    chosen.leaks_mended = mended
    ctx.log.info(
        "%d posts are in the dataset, %d of them held out; %d duplicates left out",
        len(chosen.kept), int(chosen.held_out.sum()), len(corpus) - len(chosen.kept),
    )  # fmt: skip
    return chosen


def _choose(spec: PreprocessSpec, corpus: Corpus, sets: UnionFind, first: Ints, in_time: Ints) -> Selection:
    roots = sets.roots()
    stay = capped(roots, in_time, spec.max_repeats)
    kept = np.flatnonzero(stay)
    distinct, cluster = np.unique(roots[kept], return_inverse=True)
    names = [corpus.name(n).encode("utf-8", "replace") for n in distinct.tolist()]
    rank = np.empty(len(kept), np.int64)
    rank[np.argsort(in_time[kept], kind="stable")] = np.arange(len(kept))
    cluster = cluster.reshape(-1).astype(np.int64)
    held = held_out(cluster, names, rank, how=spec.split, share=spec.validation, seed=spec.seed)
    return Selection(stay, first, roots, kept, cluster, held)


# -- case and tokenizer


def choose_case(spec: PreprocessSpec, profile: Profile, corpus: Corpus, chosen: Selection) -> tuple[str, str, float]:
    """(case of the training text, what generation restores, measured share of capitals)."""
    upper = int(corpus.upper[chosen.kept].sum())
    cased = upper + int(corpus.lower[chosen.kept].sum())
    capitals = share(upper, cased)
    case = spec.case if spec.case != "auto" else profile.case
    if case == "auto":
        case = "lower" if capitals >= UPPER_CASE else "keep"
    return case, "upper" if case == "lower" and capitals >= UPPER_CASE else "none", capitals


def bpe_texts(ctx: Context, rows: Rows, *, lower: bool) -> Iterator[list[str]]:
    """The train texts for the tokenizer; evenly spread ones where there are very many."""
    sample = rows.texts() if len(rows) <= CHUNK_POSTS else rows.part(slice(0, None, len(rows) // CHUNK_POSTS)).texts()
    whole = sum(map(len, sample)) / len(sample) * len(rows)
    step = max(1, round(whole / BPE_CHARACTERS))
    used = rows.part(slice(0, None, step))
    for start in range(0, len(used), CHUNK_POSTS):
        ctx.check_stop()
        texts = used.part(slice(start, start + CHUNK_POSTS)).texts()
        yield [t.lower() for t in texts] if lower else texts


# -- second pass


def second_pass(
    ctx: Context,
    writer: ArtifactWriter,
    corpus: Corpus,
    chosen: Selection,
    tokenizer: TokenizerInfo,
    workers: Workers,
    profile: Profile,
    clock: Clock,
    *,
    case: str,
    restore: str,
    upper_share: float,
) -> None:
    """Tokenise, write, pack, report, commit."""
    spec = ctx.spec
    total = len(chosen.kept)
    rows = corpus.rows.part(chosen.kept)

    def tasks() -> Iterator[EncodeTask]:
        for number, start in enumerate(range(0, total, CHUNK_POSTS)):
            part = slice(start, start + CHUNK_POSTS)
            yield EncodeTask(
                number, rows.part(part), chosen.cluster[part], chosen.held_out[part], tokenizer.file,
                (tokenizer.bos_token_id, tokenizer.eos_token_id), case == "lower", profile.separator,
            )  # fmt: skip

    done = 0
    parts: list[Encoded] = []
    with DatasetWriter(writer, tokenizer, spec.block_size) as dataset:
        for part in workers.map(encode_rows, tasks()):
            dataset.add(part.file)
            done += len(part.tokens)
            parts.append(part)
            ctx.progress.update(message="tokenising", done=done, total=total, unit="posts")
            ctx.check_stop()
    clock.lap("tokens and blocks")
    excluded = write_excluded(writer, corpus.dropped, rows=corpus.rows, duplicates=_duplicates(corpus, chosen))
    writer.put_folder(tokenizer.folder, "tokenizer/")

    measures = Measures.concatenate([p.measures for p in parts])
    tokens = _join([p.tokens for p in parts])
    line_counts = np.sum([p.line_counts for p in parts], axis=0)
    sample = sample_texts(corpus, chosen.kept)
    languages = language_shares(sample)
    style = Style(
        profile=profile.name,
        case="lower" if case == "lower" else "keep",
        restore="upper" if restore == "upper" else "none",
        separator=profile.separator,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        vocab_size=tokenizer.vocab_size,
        block_size=spec.block_size,
        tokenizer=tokenizer.source,
        form=form_of(measures, line_counts, tokens, languages[0][0] if languages else None),
    )
    writer.put_bytes(STYLE_FILE, style.to_json())
    months: Counter[str] = sum((p.months for p in parts), Counter())
    findings = Findings(
        posts=corpus.posts,
        rules=[rule.label for rule in profile.rule],
        dropped=corpus.dropped_by,
        changed=corpus.changed_by,
        examples=corpus.examples,
        duplicates=Counter({k: v for k, v in excluded.items() if k in ("duplicate", "near_duplicate")}),
        repeats=_top_repeats(corpus, chosen),
        held_out=chosen.held_out,
        leaks_mended=chosen.leaks_mended,
        measures=measures,
        tokens=tokens,
        months=months,
        languages=languages,
        economy=token_economy(sample, tokenizer),
        capitals=upper_share,
        style=style,
        blocks=dataset.blocks,
        scratch=tokenizer.source.startswith(SCRATCH),
        spec=spec,
    )
    page, facts = build_report(findings)
    writer.put_bytes("report.html", page.encode("utf-8"))
    writer.put_bytes("report.json", (json.dumps(facts, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode())
    counts = facts["counts"]
    clock.lap("report")
    ctx.log.info("seconds: %s", ", ".join(f"{name} {seconds:.2f}" for name, seconds in clock.steps.items()))
    ctx.commit(
        writer,
        counts=counts,
        info={
            "profile": profile.name,
            "case": style.case,
            "restore": style.restore,
            "tokenizer": tokenizer.source,
            "vocab_size": tokenizer.vocab_size,
            "block_size": spec.block_size,
            "language": style.form.language,
        },
    )


def _duplicates(corpus: Corpus, chosen: Selection) -> Iterator[tuple[int, str, str]]:
    """(number, rule, detail) of every post that is left out as a duplicate."""
    in_time = corpus.in_time()
    oldest: dict[int, int] = {}
    for number in chosen.kept.tolist():
        root = int(chosen.roots[number])
        if root not in oldest or in_time[number] < in_time[oldest[root]]:
            oldest[root] = number
    equal = {int(chosen.first_equal[n]) for n in chosen.kept.tolist()}
    for number in np.flatnonzero(~chosen.stay).tolist():
        exact = int(chosen.first_equal[number]) in equal
        yield number, "duplicate" if exact else "near_duplicate", f"of {corpus.name(oldest[int(chosen.roots[number])])}"


def _top_repeats(corpus: Corpus, chosen: Selection, most: int = 10) -> list[tuple[int, str]]:
    """(posts, text) of the largest clusters."""
    sizes = np.bincount(chosen.roots, minlength=len(corpus))
    order = np.argsort(-sizes, kind="stable")[:most]
    top = order[sizes[order] > 1]
    texts = corpus.rows.part(top).texts() if len(top) else []
    return [(int(sizes[n]), text[:300]) for n, text in zip(top.tolist(), texts, strict=True)]


__all__ = ["NO_DATE", "run"]
