"""The plan of a batch, the drawing of one part, and the merging of all: rules that need no model."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.generate.engines import Draw
from jobs.generate.gates import Gates, Judged
from jobs.generate.language import Language, read_language
from jobs.generate.merge import Merge
from jobs.generate.parts import HOPELESS, STUBBORN, Drawing, Part, Plan, Tally, again, worth_drawing
from jobs.generate.prompts import open_prompts
from jobs.similarity import jaccard, shingles
from jobs.specs import GenerateSpec
from tests.conftest import ROOT
from tests.generate.models import BEGIN, MadeModel


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 64, 100, 200, 1000, 4097, 100_000, 10_000_000])
@pytest.mark.parametrize("micro_batch", [1, 16, 64, 500])
def test_the_plan_covers_every_post_once(count: int, micro_batch: int) -> None:
    plan = Plan(count, micro_batch)
    first, last = plan[0].slots, plan[len(plan) - 1].slots
    assert (first[0], last[-1]) == (0, count - 1)
    for number in range(0, len(plan) - 1, max(1, len(plan) // 50)):
        assert plan[number].slots[-1] + 1 == plan[number + 1].slots[0]
    sizes = {len(plan[n].slots) for n in range(0, len(plan), max(1, len(plan) // 50))}
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(32, 4 * micro_batch)
    with pytest.raises(IndexError):
        plan[len(plan)]


def test_a_large_batch_has_parts_for_many_shards() -> None:
    assert len(Plan(512, 160)) == 2
    assert len(Plan(600, 160)) == 2  # a third one would keep one core of two waiting
    assert len(Plan(1000, 160)) == 4
    assert len(Plan(5000, 160)) == 10
    assert len(Plan(100_000, 160)) == 196
    assert len(Plan(40, 160)) == 2  # both cores have something to do


@pytest.mark.parametrize(("count", "micro_batch"), [(1, 16), (33, 1), (600, 160), (5000, 160), (4097, 7)])
def test_the_part_of_a_post(count: int, micro_batch: int) -> None:
    plan = Plan(count, micro_batch)
    for part in plan:
        assert {plan.part_of(index) for index in part.slots} == {part}


def test_seeds_differ() -> None:
    seeds = {Part(r, n, ()).seed(s) for r in range(3) for n in range(40) for s in range(5)}
    assert len(seeds) == 600


@pytest.fixture(scope="module")
def language(untrained: MadeModel) -> Language:
    return read_language(untrained.folder, "model/x")


class Scripted:
    """A session that says what it is told, and keeps how it was asked."""

    def __init__(self, say: Callable[[int, list[int]], Draw]) -> None:
        self._say = say
        self._number = itertools.count()
        self.batches: list[int] = []

    def draw(self, prompts: Sequence[Sequence[int]]) -> list[Draw]:
        self.batches.append(len(prompts))
        return [self._say(next(self._number), list(p)) for p in prompts]


def draw_part(
    language: Language,
    session: Scripted,
    slots: Sequence[int],
    prompts: tuple[str, ...] = (),
    gates: type[Gates] = Gates,
    **fields: Any,
) -> Drawing:
    given: dict[str, Any] = {"form": False, "min_characters": 1, "micro_batch": 16, "prompts": prompts}
    spec = GenerateSpec(model="model/" + "0" * 20, **{**given, **fields})
    source = open_prompts(spec, None, language, None)  # type: ignore[arg-type]
    drawing = Drawing(
        Part(0, 0, slots), session, source, gates(spec, language, None), spec, lambda tally, accepted: None
    )
    drawing.run()
    return drawing


def speak(language: Language, text: str, *, score: float = -1.0, ended: bool = True) -> Draw:
    return Draw(language.tokenizer.encode(text, add_special_tokens=False).ids, score, ended)


def unlike(number: int) -> str:
    """A text that is like no other."""
    return " ".join(random.Random(number).choices("абвгдежзиклмнопрстуфхцч", k=20)).replace(" ", "")


def test_full_batches_when_all_pass(language: Language) -> None:
    session = Scripted(lambda n, _: speak(language, unlike(n)))
    drawing = draw_part(language, session, range(40))
    assert sorted(drawing.accepted) == list(range(40))
    assert session.batches == [16, 16, 10]  # by far the most pass, but who knows
    assert (drawing.tally.drawn, drawing.tally.spare) == (42, 2)
    assert {a.attempts for a in drawing.accepted.values()} == {1}


def test_a_batch_is_judged_while_the_next_is_drawn(language: Language) -> None:
    drawn, overlapped = [threading.Event() for _ in range(9)], []

    class Patient(Gates):
        def judge(self, prompts: Any, draws: Any) -> list[Judged]:
            if len(overlapped) < 2:  # of four batches the last is not begun before the third is judged
                overlapped.append(drawn[len(overlapped) + 1].wait(20))
            return super().judge(prompts, draws)

    class Telling(Scripted):
        def draw(self, prompts: Sequence[Sequence[int]]) -> list[Draw]:
            drawn[len(self.batches)].set()
            return super().draw(prompts)

    session = Telling(lambda n, _: speak(language, unlike(n)))
    drawing = draw_part(language, session, range(54), gates=Patient)
    assert overlapped == [True, True]
    assert len(session.batches) == 4
    assert len(drawing.accepted) == 54


@pytest.mark.parametrize("slow", ["gates", "engine", "neither"])
def test_what_is_drawn_does_not_depend_on_who_is_slow(language: Language, slow: str) -> None:
    class Slow(Gates):
        def judge(self, prompts: Any, draws: Any) -> list[Judged]:
            if slow == "gates":
                threading.Event().wait(0.02)
            return super().judge(prompts, draws)

    def say(number: int, _: list[int]) -> Draw:
        if slow == "engine" and not number % 16:
            threading.Event().wait(0.02)
        return speak(language, unlike(number), ended=number * 7 % 10 > 2)

    session = Scripted(say)
    drawing = draw_part(language, session, range(100), gates=Slow)
    assert session.batches == [16] * 9
    assert len(drawing.accepted) == 100


def test_what_is_refused_is_drawn_again_beside_what_is_left(language: Language) -> None:
    session = Scripted(lambda n, _: speak(language, unlike(n), ended=n % 4 != 0))
    drawing = draw_part(language, session, range(48))
    assert sorted(drawing.accepted) == list(range(48))
    assert session.batches == [16, 16, 16, 16]
    tally = drawing.tally
    assert tally.drawn == sum(session.batches) == 48 + tally.spare + tally.refused["ended"]
    # Any draw serves any post that begins alike: the first that passes is the first post's, with what was refused.
    assert [drawing.accepted[i].attempts for i in range(4)] == [2, 1, 1, 2]


def test_what_passes_and_is_not_needed_is_spare(language: Language) -> None:
    session = Scripted(lambda n, _: speak(language, unlike(n), ended=n % 5 != 0))
    drawing = draw_part(language, session, range(100), micro_batch=64)
    assert session.batches == [64, 64]
    assert len(drawing.accepted) == 100
    assert len(drawing.spares) == drawing.tally.spare > 0
    texts = {a.post.text for a in drawing.accepted.values()}
    assert texts.isdisjoint(spare.post.text for spare in drawing.spares)
    assert {(spare.index, spare.post.refused) for spare in drawing.spares} == {(0, None)}


def test_posts_of_different_prompts_are_drawn_for_themselves(language: Language) -> None:
    prompts = tuple(unlike(n) for n in range(1000, 1016))
    slow = language.frame(prompts[3])
    asked: list[list[int]] = []

    def say(number: int, prompt: list[int]) -> Draw:
        asked.append(prompt)
        return speak(language, unlike(number), ended=prompt != slow or asked.count(slow) >= 4)

    drawing = draw_part(language, Scripted(say), range(16), prompts=prompts)
    assert sorted(drawing.accepted) == list(range(16))
    assert all(a.post.prompt.given == prompts[i] for i, a in drawing.accepted.items())
    assert drawing.accepted[3].attempts == 4
    assert set(map(tuple, asked[16:])) == {tuple(slow)}


def test_attempts_are_bounded_and_counted(language: Language) -> None:
    stuck = language.frame("кот")

    def say(number: int, prompt: list[int]) -> Draw:
        return speak(language, unlike(number), ended=prompt != stuck)

    drawing = draw_part(language, Scripted(say), range(4), prompts=("кот", "дед", "батя", "ёж"), max_attempts=3)
    assert sorted(drawing.accepted) == [1, 2, 3]
    assert drawing.tally.drawn <= 3 * 4
    assert drawing.tally.refused["ended"] >= 5


def test_a_stubborn_prompt_does_not_take_the_whole_allowance(language: Language) -> None:
    stuck = language.frame("кот")

    def say(number: int, prompt: list[int]) -> Draw:
        return speak(language, unlike(number), ended=prompt != stuck)

    prompts = ("кот", *(unlike(n) for n in range(1000, 1063)))
    drawing = draw_part(language, Scripted(say), range(64), prompts=prompts, max_attempts=10)
    assert len(drawing.accepted) == 63
    assert 50 <= drawing.tally.refused["ended"] < 80


def test_a_hopeless_part_is_given_up_early(language: Language) -> None:
    drawing = draw_part(
        language, Scripted(lambda n, _: speak(language, unlike(n), ended=False)), range(128), max_attempts=1000
    )
    assert not drawing.accepted
    assert HOPELESS <= drawing.tally.drawn <= HOPELESS + 128


def test_near_duplicates_within_a_part(language: Language) -> None:
    session = Scripted(lambda n, _: speak(language, unlike(0 if n in (5, 9) else n)))
    drawing = draw_part(language, session, range(16))
    assert drawing.tally.refused == {"near_duplicate": 2}
    assert len({a.post.text for a in drawing.accepted.values()}) == 16
    assert [drawing.accepted[i].attempts for i in (4, 5, 8)] == [1, 2, 2]  # draws 5 and 9 were in vain


def test_reranking_keeps_the_best_by_character(language: Language) -> None:
    scores = {0: -30.0, 1: -10.0, 2: -20.0, 3: -5.0, 4: -40.0, 5: -6.0}
    session = Scripted(lambda n, _: speak(language, unlike(n), score=scores[n], ended=n != 3))
    drawing = draw_part(language, session, range(2), rerank=3)
    assert [drawing.accepted[s].post.draw.score for s in (0, 1)] == [-10.0, -6.0]
    assert [a.attempts for a in drawing.accepted.values()] == [3, 3]
    assert (drawing.tally.drawn, drawing.tally.spare, drawing.tally.refused) == (6, 3, {"ended": 1})


def test_batches_are_of_prompts_of_about_one_length(language: Language) -> None:
    lengths: list[list[int]] = []

    class Watched(Scripted):
        def draw(self, prompts: Sequence[Sequence[int]]) -> list[Draw]:
            lengths.append([len(p) for p in prompts])
            return super().draw(prompts)

    prompts = (unlike(7) * 2, "к", unlike(8))
    drawing = draw_part(language, Watched(lambda n, _: speak(language, unlike(n))), range(48), prompts=prompts)
    flat = [length for batch in lengths for length in batch]
    assert flat == sorted(flat)
    assert len(set(flat)) == 3
    assert sum(len(set(batch)) > 1 for batch in lengths) <= 2
    assert [drawing.accepted[i].post.prompt.given for i in range(6)] == [*prompts, *prompts]
    assert drawing.accepted[0].post.prompt.ids[0] == BEGIN


def test_tally_survives_json() -> None:
    tally = Tally(5, 60, 1)
    tally.refused.update(["ended", "ended", "form"])
    tally.form.update(["case"])
    other = Tally.of(json.loads(json.dumps(tally.plain())))
    assert other == tally
    other.merge(tally)
    assert (other.drawn, other.refused["ended"]) == (10, 4)


def test_attempts_are_bounded_on_average_and_for_each() -> None:
    spec = GenerateSpec(model="model/" + "0" * 20, count=100, max_attempts=4)
    lost = {3: 1, 5: 4, 7: 4 * STUBBORN - 1, 9: 4 * STUBBORN}
    assert worth_drawing(lost, spec, Tally(drawn=399)) == [3, 5, 7]
    assert worth_drawing(lost, spec, Tally(drawn=400)) == []
    reranked = spec.model_copy(update={"rerank": 3})  # three draws are one attempt then
    assert worth_drawing(lost, reranked, Tally(drawn=400)) == [3, 5, 7, 9]


# -- merging


def write_parts(folder: Path, rounds: list[list[list[tuple[int, str, int]]]]) -> list[tuple[int, Path]]:
    """``rounds``: for each round its parts, for each part (index, text, attempts)."""
    folder.mkdir(exist_ok=True)
    files = []
    for round_, parts in enumerate(rounds):
        for number, posts in enumerate(parts):
            path = folder / f"{round_}-{number}.jsonl"
            lines = (json.dumps({"index": i, "text": t, "attempts": a}, ensure_ascii=False) + "\n" for i, t, a in posts)
            path.write_text("".join(lines), "utf-8")
            files.append((round_, path))
    return files


def merged(folder: Path, rounds: list[list[list[tuple[int, str, int]]]], threshold: float = 0.8) -> Merge:
    merge = Merge(folder / f"merge-{len(rounds)}", threshold)
    files = write_parts(folder / "p", rounds)
    for round_ in range(len(rounds)):
        merge.add([path for number, path in files if number == round_])
    return merge


def indexes(merge: Merge) -> list[int]:
    return [json.loads(line)["index"] for line in merge.lines()]


def test_the_first_of_near_duplicates_stays(tmp_path: Path) -> None:
    first = [
        [(0, "кот чинит забор у соседа", 1), (1, unlike(1), 1)],
        [(2, unlike(2), 1), (3, "Кот чинит забор у соседа!", 2)],
    ]
    merge = merged(tmp_path, [first])
    assert indexes(merge) == [0, 1, 2]
    assert (merge.lost(0), merge.dropped) == ({3: 2}, 1)
    # The one drawn anew is no better at first; what is kept already has the right of way whatever its index.
    anew = [[(3, "кот чинит забор у соседа", 3)]]
    merge = merged(tmp_path, [first, anew])
    assert (indexes(merge), merge.lost(1), merge.dropped) == ([0, 1, 2], {3: 5}, 2)
    merge = merged(tmp_path, [first, anew, [[(3, unlike(9), 1)]]])
    assert (indexes(merge), merge.lost(1), merge.lost(2)) == ([0, 1, 2, 3], {}, {})
    assert [json.loads(line)["attempts"] for line in merge.lines()] == [1, 1, 1, 1]


@pytest.mark.parametrize("rounds", [1, 4])
@pytest.mark.parametrize("at_once", [7, 64, 1 << 16])
def test_merging_equals_the_plain_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int, at_once: int
) -> None:
    for name in ("_BATCH", "_PIECE", "_SORTED"):  # what is looked at together makes no difference
        monkeypatch.setattr(f"jobs.generate.merge.{name}", at_once)
    rng = random.Random(8)
    seeds = [unlike(n) + unlike(n + 500) for n in range(30)]

    def vary(text: str) -> str:
        letters = list(text)
        for _ in range(rng.randint(0, 3)):
            letters[rng.randrange(len(letters))] = rng.choice("абвгд")
        return "".join(letters)

    texts = [vary(rng.choice(seeds)) for _ in range(300)]
    kept: list[int] = []
    sets = [shingles(t) for t in texts]
    for n in range(len(texts)):
        if not any(jaccard(sets[n], sets[k]) >= 0.7 for k in kept):
            kept.append(n)
    parts = [[(n, texts[n], 1) for n in range(at, at + 30)] for at in range(0, 300, 30)]
    step = len(parts) // rounds
    merge = merged(tmp_path, [parts[at : at + step] for at in range(0, step * rounds, step)], 0.7)
    kept = [n for n in kept if n < 30 * step * rounds]
    assert 30 <= len(kept) < 200
    assert indexes(merge) == kept
    assert merge.kept.tolist() == [n in set(kept) for n in range(30 * step * rounds)]
    assert sorted(merge.lost(0)) == [n for n in range(30 * step * rounds) if n not in set(kept)]


MERGING = """
import hashlib, json, re, sys
from pathlib import Path
from jobs.generate.merge import Merge
folder, count = Path(sys.argv[1]), int(sys.argv[2])
with folder.joinpath("posts.jsonl").open("w") as file:
    for n in range(count):
        text = hashlib.sha256(str(n).encode()).hexdigest()
        file.write(json.dumps({"index": n, "text": text, "attempts": 1}) + "\\n")
with Merge(folder / "merge", 0.8) as merge:
    merge.add([folder / "posts.jsonl"])
    assert sum(1 for _ in merge.lines()) == count and not merge.lost(0)
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is told by Linux")
def test_merging_takes_hardly_any_memory_a_post(tmp_path: Path) -> None:
    peaks = {}
    for count in (4_000, 60_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        command = [sys.executable, "-c", MERGING, str(folder), str(count)]
        peaks[count] = int(subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT).stdout) / 1024
    assert peaks[4_000] > 20, peaks
    assert peaks[60_000] - peaks[4_000] < 10, peaks  # MiB; what is on disk meanwhile is 16 MiB


def test_merging_nothing(tmp_path: Path) -> None:
    merge = merged(tmp_path, [[[], []]])
    assert (list(merge.lines()), merge.lost(0), merge.dropped) == ([], {}, 0)
    assert not merge.kept.any()


def test_posts_drawn_anew_come_in_parts_of_bounded_size() -> None:
    slots = list(range(0, 3000, 2))
    parts = again(2, slots, 160)
    assert [len(p.slots) for p in parts] == [500, 500, 500]
    assert [s for p in parts for s in p.slots] == slots
    assert [p.name for p in parts] == ["02-00000", "02-00001", "02-00002"]
    assert [len(p.slots) for p in again(1, slots[:90], 160)] == [45, 45]
    assert [len(p.slots) for p in again(1, slots[:40], 160)] == [40]
