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
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from jobs.artifacts import ArtifactWriter
from jobs.preprocess.corpus import Rows
from jobs.preprocess.encode import Encoded, EncodeTask, encode_rows
from jobs.preprocess.gather import Context, Corpus, first_pass, join
from jobs.preprocess.measure import Measures, form_of, share
from jobs.preprocess.output import DatasetWriter, write_excluded
from jobs.preprocess.pool import Workers, aside, share_size, usable_cores
from jobs.preprocess.profile import MAX_SIZE, Profile, builtin_text, parse_profile
from jobs.preprocess.report import Findings, build_report
from jobs.preprocess.sampling import EconomyTask, language_shares, sample_texts, token_economy
from jobs.preprocess.select import Selection, left_out, select, top_repeats
from jobs.preprocess.tokenizer import TokenizerInfo, is_scratch, load_pretrained, one_thread, train_bpe
from jobs.specs import DataError, PreprocessSpec, SpecError
from jobs.style import STYLE_FILE, Style

TASKS = "jobs.preprocess.tasks"  # what the workers load
CHUNK_POSTS = 4096  # a task of the second pass
#: Share of capitals among cased letters from which a channel counts as one that writes in capitals.
UPPER_CASE = 0.75
#: A BPE is trained on about so many characters of the train posts, evenly spread. On 5.6 million characters and a
#: vocabulary of 8192 all of them gained 0.3 % in characters a token on held-out posts, and took the time of all the
#: rest of the stage.
BPE_CHARACTERS = 2_000_000


@dataclass(slots=True)
class Clock:
    """Seconds that each step took, for the log."""

    started: float = field(default_factory=time.perf_counter)
    steps: dict[str, float] = field(default_factory=dict)

    def lap(self, name: str) -> None:
        """The step that ends now."""
        now = time.perf_counter()
        self.steps[name] = self.steps.get(name, 0.0) + now - self.started
        self.started = now


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the corpus before the second pass: posts left out by rule, some texts, their languages."""

    excluded: Counter[str]
    sample: list[str]
    languages: list[tuple[str, float]]


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
        data = ctx.store.read(manifest.ref, manifest.files[0], max_size=MAX_SIZE)
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
    # The trainer of tokenizers is no faster with two cores than with one, and the workers have a use for the others.
    with one_thread(), Workers(spec.workers or usable_cores(), preload=TASKS) as workers:
        tokenizer = None
        if not scratch:  # a model that cannot be had should not be noticed after all the work
            tokenizer = load_pretrained(spec, ctx.store, ctx.workdir / "base", ctx.workdir / "tokenizer")
            clock.lap("tokenizer")
        corpus = first_pass(ctx, text, where, workers)
        clock.lap("rules")
        if not len(corpus):
            raise DataError(_nothing_left(corpus, profile))
        # The trainer does most of its work on one core and without the GIL: let the others go on meanwhile.
        with aside() as thread:
            training: Future[TokenizerInfo] | None = None

            def begin(chosen: Selection) -> None:
                nonlocal training
                if training is not None:
                    training.cancel()  # unless it is under way, which nothing ends before its time
                if scratch:
                    lower = choose_case(spec, profile, corpus, chosen)[0] == "lower"
                    texts = bpe_texts(ctx, corpus.rows.part(chosen.kept[~chosen.held_out]), lower=lower)
                    training = thread.submit(train_bpe, texts, spec.vocab_size, ctx.workdir / "tokenizer", spec.model)

            chosen = select(ctx, corpus, workers, begin)
            clock.lap("duplicates and split")
            writer = ctx.writer()
            excluded = write_excluded(writer, corpus.dropped, rows=corpus.rows, duplicates=left_out(corpus, chosen))
            sample = sample_texts(corpus, chosen.kept)
            known = Known(excluded, sample, language_shares(sample))
            if training is not None:
                ctx.progress.update(message="training the tokenizer")
                tokenizer = training.result()
            clock.lap("tokenizer")
        case, restore, upper_share = choose_case(spec, profile, corpus, chosen)
        assert tokenizer is not None
        second_pass(
            ctx, writer, corpus, chosen, tokenizer, workers, profile, clock, known,
            case=case, restore=restore, upper_share=upper_share,
        )  # fmt: skip


def _nothing_left(corpus: Corpus, profile: Profile) -> str:
    if not corpus.posts:
        return "the posts artefact holds no posts; look at what scrape read"
    most = ", ".join(f"{name} {count}" for name, count in corpus.dropped_by.most_common(3))
    return f"no post is left of {corpus.posts}: the rules of profile {profile.name} dropped all ({most})"


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
    sample = rows if len(rows) <= CHUNK_POSTS else rows.part(slice(0, None, len(rows) // CHUNK_POSTS))
    characters = sum(len(t) for piece in sample.pieces(CHUNK_POSTS) for t in sample.part(piece).texts())
    whole = characters / len(sample) * len(rows)
    step = max(1, round(whole / BPE_CHARACTERS))
    used = rows.part(slice(0, None, step))
    for piece in used.pieces(CHUNK_POSTS):
        ctx.check_stop()
        texts = used.part(piece).texts()
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
    known: Known,
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
        for number, part in enumerate(rows.pieces(share_size(total, CHUNK_POSTS))):
            yield EncodeTask(
                number, rows.part(part), chosen.cluster[part], chosen.held_out[part], tokenizer.file,
                (tokenizer.bos_token_id, tokenizer.eos_token_id), case == "lower", profile.separator,
            )  # fmt: skip

    done = 0
    parts: list[Encoded] = []
    with DatasetWriter(writer, tokenizer, spec.block_size) as dataset, ThreadPoolExecutor(1) as thread:
        writing: Future[None] | None = None
        for part in workers.map(encode_rows, tasks()):
            if writing is not None:
                writing.result()
            writing = thread.submit(dataset.add, part.file)
            done += len(part.tokens)
            parts.append(part)
            ctx.progress.update(message="tokenising", done=done, total=total, unit="posts")
            ctx.check_stop()
        if writing is not None:
            writing.result()
        finishing = thread.submit(dataset.finish)
        writer.put_folder(tokenizer.folder, "tokenizer/")
        measures = Measures.concatenate([p.measures for p in parts])
        tokens = join([p.tokens for p in parts])
        line_counts = np.sum([p.line_counts for p in parts], axis=0)
        (economy,) = workers.map(token_economy, [EconomyTask(known.sample, tokenizer.file)])
        finishing.result()
    clock.lap("tokens and blocks")
    languages = known.languages
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
        duplicates=Counter({k: v for k, v in known.excluded.items() if k in ("duplicate", "near_duplicate")}),
        repeats=top_repeats(corpus, chosen),
        held_out=chosen.held_out,
        leaks_mended=chosen.leaks_mended,
        measures=measures,
        tokens=tokens,
        months=months,
        languages=languages,
        economy=economy,
        capitals=upper_share,
        style=style,
        blocks=dataset.blocks,
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
