"""Corpora made from raw texts: every row accounted for, the same bytes however the work is done or interrupted."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pyarrow.parquet
import pytest

from kiban.data import prepare
from kiban.data.clean import clean
from kiban.data.corpus import read_texts
from kiban.data.dedup import dedup, split
from kiban.data.growing import growing_folder
from kiban.data.inspection import Repeats, inspect, plot_lengths
from kiban.data.prepare import Inputs, Means
from kiban.data.quality import Rules
from kiban.data.shards import Shards
from kiban.data.tokenize import tokenize
from kiban.data.workers import workers
from kiban.errors import ConfigError, DatasetError, KibanError
from kiban.files import verify_folder
from kiban.inputs.tokenizer import Tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
SMALL = 4000  # characters of a block, so that there are many
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def descriptions(code: str, number: int) -> list[str]:
    with (EXAMPLES / f"debian-{code}.csv").open(encoding="utf-8") as file:
        return [row["本文" if code == "ja" else "text"] for row in csv.DictReader(file)][:number]


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 texts in Japanese and English, copies, near-copies, junk and a defect, in files of several kinds."""
    folder = tmp_path_factory.mktemp("raw")
    japanese, english = descriptions("ja", 300), descriptions("en", 200)
    junk = [
        "短い。",
        "Lorem ipsum dolor sit amet " * 10,
        "…".join(["続きを読む"] * 20),
        "１２３４５ " * 40 + "数字ばかりの表です" * 5,
    ]
    rows = [{"id": f"d{i}", "text": text} for i, text in enumerate([*japanese, *junk, *japanese[:30]])]
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    lines.insert(50, b'{"text": "\xff"}')
    (folder / "a.jsonl").write_bytes(b"\n".join(lines))
    pyarrow.parquet.write_table(pyarrow.table({"text": english}), folder / "b.parquet")
    near = [text + " This sentence was added." for text in english if len(text) > 500]
    (folder / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in near), "utf-8")
    (folder / "d").mkdir()
    for i, text in enumerate(descriptions("ja", 330)[300:]):
        (folder / "d" / f"{i:02}.txt").write_text(text, "utf-8")
    return folder


def inputs(*paths: Path, **options: Any) -> Inputs:
    return Inputs(paths=paths, **{"on_bad_row": "skip", "block_characters": SMALL, **options})


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("part-*")) for line in path.read_text("utf-8").splitlines()]


def check_account(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Every row is kept, dropped by a rule, or quarantined; the manifest on disk says the same and fits the files."""
    verify_folder(folder)
    stored = json.loads((folder / "kiban.json").read_text("utf-8"))
    assert {name: stored[name] for name in facts} == json.loads(json.dumps(facts))
    assert set(stored["files"]) == {*hashes(folder)} - {"kiban.json"}
    assert facts["rows_in"] == facts["kept"] + sum(facts["dropped"].values()) + facts["quarantined"]
    assert facts["quarantined"] == 1 == len((folder / "quarantine.jsonl").read_text("utf-8").splitlines())
    return stored


# Verbs --------------------------------------------------------------------------------------------------------------


def test_cleaning_accounts_for_every_row(raw: Path, tmp_path: Path) -> None:
    facts = clean(inputs(raw), tmp_path / "out")
    check_account(tmp_path / "out", facts)
    rows = written(tmp_path / "out")
    assert len(rows) == facts["kept"] and sum(len(row["text"]) for row in rows) == facts["characters"]
    assert facts["rows_in"] == 1 + sum(1 for _ in read_texts(raw, on_bad_row="skip"))
    assert {"too_short", "placeholder", "digits"} <= {*facts["dropped"]}
    assert sum(part["documents"] for part in facts["languages"].values()) == facts["kept"]
    assert {*facts["languages"]} == {"ja", "en"}
    samples = [
        json.loads(line) for line in (tmp_path / "out" / "dropped-samples.jsonl").read_text("utf-8").splitlines()
    ]
    expected = {name: min(number, prepare.SAMPLES) for name, number in facts["dropped"].items()}
    assert Counter(row["rule"] for row in samples) == expected
    assert next(row for row in samples if row["rule"] == "placeholder")["id"] == "d301"
    # What was cleaned is clean.
    again = clean(inputs(tmp_path / "out"), tmp_path / "again")
    assert again["kept"] == facts["kept"] and written(tmp_path / "again") == rows


def test_cleaning_with_options(tmp_path: Path) -> None:
    texts = [*descriptions("ja", 20), *descriptions("en", 20)]
    rows = [{"本文": f"{text} 連絡先: info{i}@example.jp 03-1234-{i:04}"} for i, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    source = inputs(tmp_path / "a.jsonl", field="本文")
    facts = clean(source, tmp_path / "mask", rules=Rules(languages=("ja",), personal_data="mask"))
    assert facts["kept"] == 20 and facts["dropped"] == {"language": 20}
    assert facts["masked"] == {"email": 40, "phone": 40}
    assert all(row["text"].endswith("連絡先: <email> <phone>") for row in written(tmp_path / "mask"))
    with pytest.raises(DatasetError, match="personal_data"):
        clean(source, tmp_path / "drop", rules=Rules(personal_data="drop"))
    assert not (tmp_path / "drop").exists()
    facts = clean(source, tmp_path / "nfkc", form="NFKC", compress="zstd")
    assert [path.name for path in (tmp_path / "nfkc").glob("part*")] == ["part-00000.jsonl.zst"]
    assert len(list(read_texts(tmp_path / "nfkc"))) == 40 == facts["kept"]


def test_documents_fill_several_files(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "PART_BYTES", 40_000)
    clean(inputs(raw), tmp_path / "out")
    sizes = [path.stat().st_size for path in sorted((tmp_path / "out").glob("part-*"))]
    assert len(sizes) > 4 and all(40_000 <= size < 60_000 for size in sizes[:-1])


def test_copies_and_near_copies_are_dropped_after_the_first(raw: Path, tmp_path: Path) -> None:
    facts = dedup(inputs(raw), tmp_path / "out")
    check_account(tmp_path / "out", facts)
    near = sum(len(text) > 500 for text in descriptions("en", 200))
    assert facts["dropped"]["duplicate"] == 30 and near * 0.9 < facts["dropped"]["near_duplicate"] <= near + 2
    rows, everything = written(tmp_path / "out"), list(read_texts(raw, on_bad_row="skip"))
    place = {text.id: i for i, text in enumerate(everything)}
    assert [place[row["id"]] for row in rows] == sorted(place[row["id"]] for row in rows)
    assert {f"d{i}" for i in range(300)} - {row["id"] for row in rows} == {
        text.id for text in everything[:300] if text.text not in {row["text"] for row in rows}
    }
    for line in (tmp_path / "out" / "dropped-samples.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        if row["rule"] == "duplicate":
            assert everything[row["copy_of_document"] - 1].text.startswith(row["text"])
    again = dedup(inputs(tmp_path / "out"), tmp_path / "again")
    assert again["dropped"] == {} and written(tmp_path / "again") == rows


def test_splits_keep_copies_together_and_do_not_depend_on_order(raw: Path, tmp_path: Path) -> None:
    facts = split(inputs(raw), tmp_path / "out", shares=SHARES)
    check_account(tmp_path / "out", facts)
    where: dict[str, set[str]] = {}
    texts = {name: written(tmp_path / "out" / name) for name in SHARES}
    for name, rows in texts.items():
        assert len(rows) == facts["splits"][name]["documents"] > 0
        for row in rows:
            where.setdefault(row["text"].removesuffix(" This sentence was added."), set()).add(name)
    straddling = [text for text, names in where.items() if len(names) > 1]
    assert not [text for text in straddling if len(text) > 560]  # a shorter one with a sentence more is no near-copy
    assert abs(len(texts["train"]) / facts["kept"] - 0.8) < 0.08
    # In another order, in one file, with other documents besides, each goes where it went.
    shuffled = [row for rows in texts.values() for row in rows]
    random.Random(0).shuffle(shuffled)
    more = [{"id": f"m{i}", "text": text} for i, text in enumerate(descriptions("ja", 1900)[1500:])]
    lines = [json.dumps(row) + "\n" for row in [*more, *shuffled]]
    (tmp_path / "b.jsonl").write_text("".join(lines), "utf-8")
    split(inputs(tmp_path / "b.jsonl"), tmp_path / "other", shares=SHARES)
    for name, rows in texts.items():
        assert {r["id"] for r in rows} == {r["id"] for r in written(tmp_path / "other" / name) if r["id"][0] != "m"}
    other = split(inputs(raw), tmp_path / "seed", shares=SHARES, seed=1)
    assert other["splits"] != facts["splits"]


@pytest.mark.parametrize(
    "shares", [{}, {"a": 0.5}, {"a": 0.7, "b": 0.7}, {"a": 1.5, "b": -0.5}, {"../a": 0.5, "b": 0.5}, {"a b": 1.0}]
)
def test_shares_are_checked(shares: dict[str, float], raw: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shares"):
        split(inputs(raw), tmp_path / "out", shares=shares)
    assert not list(tmp_path.iterdir())


def test_a_share_without_a_document_is_an_error(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="gets no document"):
        split(inputs(raw / "d"), tmp_path / "out", shares={"train": 0.9999, "test": 0.0001})
    assert not list(tmp_path.iterdir())


def test_tokens_are_those_of_the_tokenizer(raw: Path, tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    facts = tokenize(inputs(raw), tmp_path / "out", byte_tokenizer, shard_tokens=30_000)
    check_account(tmp_path / "out", facts)
    shards = Shards(tmp_path / "out")
    texts = [text.text for text in read_texts(raw, on_bad_row="skip")]
    assert len(shards) == len(texts) and facts["shards"] > 3
    for i, text in enumerate(texts):
        assert shards.document(i).tolist() == [byte_tokenizer.eos_id, *byte_tokenizer.encode(text, add_special=False)]
        assert shards.characters[i] == len(text)
    opened = Tokenizer.from_folder(tmp_path / "out" / "tokenizer")
    assert opened.decode(shards.document(0)[1:].tolist()) == texts[0]


def test_texts_without_a_character_are_dropped(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": " \\n"}\n{"text": "a"}\n', "utf-8")
    facts = tokenize(inputs(tmp_path / "a.jsonl"), tmp_path / "out", byte_tokenizer)
    assert (facts["rows_in"], facts["kept"], facts["dropped"]) == (3, 1, {"empty": 2})


def test_a_special_token_in_a_text_stays_text(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("before<end>after", "utf-8")
    tokenize(inputs(tmp_path / "a.txt"), tmp_path / "out", byte_tokenizer)
    ids = Shards(tmp_path / "out").document(0).tolist()
    assert ids.count(byte_tokenizer.eos_id) == 1 and ids[0] == byte_tokenizer.eos_id


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("a", "utf-8")
    bare = Tokenizer(byte_tokenizer.backend, special={})
    with pytest.raises(ConfigError, match="eos_token"):
        tokenize(inputs(tmp_path / "a.txt"), tmp_path / "out", bare)


def test_looking_at_a_corpus(raw: Path, tmp_path: Path) -> None:
    report = inspect(inputs(raw))
    texts = [text.text for text in read_texts(raw, on_bad_row="skip")]
    assert report.documents == len(texts) and report.quarantined == 1
    assert report.characters == sum(map(len, texts)) and report.bytes == sum(len(text.encode()) for text in texts)
    assert report.quantiles["0%"] == min(map(len, texts)) and report.quantiles["100%"] == max(map(len, texts))
    assert report.duplicates == pytest.approx((len(texts) - len({*texts})) / len(texts))
    assert sum(report.kinds.values()) == pytest.approx(1) and report.kinds["kanji"] > 0.02
    lines = [line for text in texts for line in {s for s in map(str.strip, text.split("\n")) if len(s) >= 10}]
    new = sum(map(len, {*lines}))
    assert report.repeated_lines == pytest.approx(1 - new / sum(map(len, lines)))
    assert sum(map(len, report.lengths.values())) == len(texts)
    for kind in ("png", "svg", "pdf"):
        plot_lengths(report, tmp_path / f"x.{kind}")
        assert (tmp_path / f"x.{kind}").stat().st_size > 1000
    with pytest.raises(ConfigError, match="png"):
        plot_lengths(report, tmp_path / "x.xyz")
    json.dumps(report.as_dict())


def test_repeats_are_estimated_when_there_are_very_many(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from kiban.data import inspection

    monkeypatch.setattr(inspection, "SAMPLED", 4096)
    draw, repeats = np.random.default_rng(0), Repeats()
    values = draw.integers(0, 2**63, 60_000, dtype=np.uint64)
    stream = np.concatenate([values, values[:20_000]])  # a quarter repeats
    for part in np.array_split(stream, 50):
        repeats.add(part, np.ones(len(part), dtype=np.int64))
    assert len(repeats.first) <= 4096 and repeats.share == pytest.approx(0.25, abs=0.03)


# The same bytes -----------------------------------------------------------------------------------------------------

VERBS: dict[str, Callable[..., dict[str, Any]]] = {
    "clean": lambda source, out, _, means: clean(source, out, compress="gzip", means=means),
    "dedup": lambda source, out, _, means: dedup(source, out, compress="zstd", means=means),
    "split": lambda source, out, _, means: split(source, out, shares=SHARES, means=means),
    "tokenize": lambda source, out, tokenizer, means: tokenize(
        source, out, tokenizer, shard_tokens=30_000, means=means
    ),
}


@pytest.mark.parametrize("verb", VERBS)
def test_the_number_of_processes_does_not_matter(
    verb: str, raw: Path, tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    for processes in (1, 2):
        VERBS[verb](inputs(raw), tmp_path / str(processes), byte_tokenizer, Means(processes=processes))
    assert hashes(tmp_path / "1") == hashes(tmp_path / "2")


def test_ray_writes_the_same_bytes(raw: Path, tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    pytest.importorskip("ray")
    for name, means in (("here", Means()), ("ray", Means(processes=2, ray="local"))):
        tokenize(inputs(raw), tmp_path / name, byte_tokenizer, means=means)
    assert hashes(tmp_path / "here") == hashes(tmp_path / "ray")


def test_no_cluster_is_told_at_once(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--ray"):
        clean(inputs(raw), tmp_path / "out", means=Means(ray="127.0.0.1:9"))
    assert not list(tmp_path.iterdir())


def test_results_come_in_order_and_few_blocks_are_read_ahead() -> None:
    begun: list[int] = []

    def blocks() -> Any:
        for i in range(40):
            begun.append(i)
            yield i

    with workers(2) as over:
        for i, result in enumerate(over(abs, blocks())):
            assert result == i and len(begun) <= i + 5


@pytest.fixture
def _found_by_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process looks for this very module by its name, from the root of the repository."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


@pytest.mark.usefixtures("_found_by_processes")
def test_an_error_in_a_process_is_the_users_error() -> None:
    with workers(2) as over, pytest.raises(ConfigError, match="broken"):
        list(over(_fail, range(5)))


def _fail(block: int) -> None:
    raise ConfigError("block", why="broken")


def _die(block: int) -> None:
    psutil.Process().kill()


@pytest.mark.usefixtures("_found_by_processes")
def test_a_process_that_is_killed_is_told() -> None:
    with workers(2) as over, pytest.raises(KibanError, match="fewer --processes"):
        list(over(_die, range(5)))


@pytest.mark.parametrize("processes", [0, -1])
def test_there_must_be_a_process(processes: int) -> None:
    with pytest.raises(ConfigError, match="processes"), workers(processes):
        pass


# Interruptions (reliability, case 10) -------------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from kiban.data.clean import clean
from kiban.data.dedup import dedup, split
from kiban.data.prepare import Inputs, Means
from kiban.data.tokenize import tokenize
from kiban.inputs.tokenizer import Tokenizer

verb, raw, out, tokenizer, processes = sys.argv[1:]
def watch(stage, documents, done, total):
    print(stage, documents, flush=True)
    sys.stdin.readline()
means = Means(processes=int(processes), watch=watch, commit_blocks=1)
source = Inputs(paths=(Path(raw),), on_bad_row="skip", block_characters=SMALL)
if verb == "clean":
    clean(source, Path(out), compress="gzip", means=means)
elif verb == "dedup":
    dedup(source, Path(out), compress="zstd", means=means)
elif verb == "split":
    split(source, Path(out), shares=SHARES, means=means)
else:
    tokenize(source, Path(out), Tokenizer.from_folder(Path(tokenizer)), shard_tokens=30_000, means=means)
""".replace("SMALL", str(SMALL)).replace("SHARES", str(SHARES))


def begin(verb: str, raw: Path, out: Path, tokenizer: Path, processes: int) -> subprocess.Popen[str]:
    """A run that waits for a line after every block."""
    command = [sys.executable, "-c", SCRIPT, verb, str(raw), str(out), str(tokenizer), str(processes)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def advance(run: subprocess.Popen[str], blocks: int, draw: random.Random) -> bool:
    """Let it do so many blocks and kill it a moment later; False if it has ended by itself."""
    assert run.stdin is not None and run.stdout is not None
    for _ in range(blocks):
        if not run.stdout.readline():
            return False
        run.stdin.write("\n")
        run.stdin.flush()
    time.sleep(draw.random() * 0.02)
    run.kill()
    return True


def check_kills(verb: str, raw: Path, folder: Path, tokenizer: Tokenizer, kills: int, processes: int = 1) -> None:
    tokenizer.save(folder / "tokenizer")
    VERBS[verb](inputs(raw), folder / "whole", tokenizer, Means())
    draw, out, killed = random.Random(0), folder / "out", 0
    while killed < kills:
        with begin(verb, raw, out, folder / "tokenizer", processes) as run:
            if not advance(run, draw.randrange(2 if kills > 10 else 3), draw):
                break
            killed += 1
        assert not out.exists() and len(list(folder.iterdir())) <= 3  # nothing but the unfinished folder
    assert killed == kills, "it ended before it was killed often enough"
    with begin(verb, raw, out, folder / "tokenizer", 1) as run:
        rest, _ = run.communicate("\n" * 10_000)
        assert run.returncode == 0
    blocks = len(list(prepare.blocks_of(inputs(raw).reader(), inputs(raw))))
    assert rest.count("\n") < blocks * (1 if verb in ("clean", "tokenize") else 2), "nothing was taken up again"
    assert hashes(out) == hashes(folder / "whole")
    assert {path.name for path in folder.iterdir()} == {"whole", "out", "tokenizer"}


@pytest.mark.parametrize("verb", VERBS)
def test_killed_and_run_again_it_writes_the_same_bytes(
    verb: str, raw: Path, tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    check_kills(verb, raw, tmp_path, byte_tokenizer, 3)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("verb", VERBS)
def test_killed_fifty_times(
    verb: str, processes: int, raw: Path, tmp_path: Path, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_kills(verb, raw, tmp_path, byte_tokenizer, 50, processes)


def test_processes_end_with_the_one_that_started_them(raw: Path, tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    byte_tokenizer.save(tmp_path / "tokenizer")
    with begin("tokenize", raw, tmp_path / "out", tmp_path / "tokenizer", 2) as run:
        assert run.stdout is not None and run.stdout.readline()
        children = psutil.Process(run.pid).children(recursive=True)
        assert len(children) >= 2
        run.kill()
        assert not psutil.wait_procs(children, timeout=20)[1]


def test_other_settings_or_changed_files_begin_anew(raw: Path, tmp_path: Path) -> None:
    """What was committed for another purpose is not used."""
    source = tmp_path / "a.jsonl"
    source.write_bytes((raw / "a.jsonl").read_bytes())

    def stop(stage: str, documents: int, done: int, total: int) -> None:
        if documents > 100:
            raise KeyboardInterrupt

    def interrupted(out: str) -> None:
        with pytest.raises(KeyboardInterrupt):
            clean(inputs(source), tmp_path / out, means=Means(watch=stop, commit_blocks=1))
        assert (tmp_path / f".{out}.unfinished" / "part-00000.jsonl").stat().st_size > 1000

    stages: list[int] = []
    means = Means(watch=lambda stage, documents, done, total: stages.append(documents), commit_blocks=1)
    interrupted("same")
    clean(inputs(source), tmp_path / "same", means=means)
    assert stages[0] > 100
    for change in ("settings", "file"):
        interrupted(change)
        stages.clear()
        if change == "file":
            source.write_bytes(source.read_bytes() + b'\n{"text": "x"}')
        rules = Rules(min_words=5) if change == "settings" else Rules()
        clean(inputs(source), tmp_path / change, rules=rules, means=means)
        assert stages[0] < 100
        clean(inputs(source), tmp_path / f"{change}-anew", rules=rules)
        assert hashes(tmp_path / change) == hashes(tmp_path / f"{change}-anew")


def test_damaged_leftovers_begin_anew(raw: Path, tmp_path: Path) -> None:
    def stop(stage: str, documents: int, done: int, total: int) -> None:
        if documents > 100:
            raise KeyboardInterrupt

    clean(inputs(raw), tmp_path / "whole")
    work = tmp_path / ".out.unfinished"
    for damage in ("note", "list", "short", "gone", "extra"):
        with pytest.raises(KeyboardInterrupt):
            clean(inputs(raw), tmp_path / "out", means=Means(watch=stop, commit_blocks=1))
        part = work / "part-00000.jsonl"
        if damage == "note":
            (work / ".note.json").write_bytes(b"{")
        elif damage == "list":
            (work / ".note.json").write_bytes(b'{"purpose": [], "state": 3}')
        elif damage == "short":
            part.write_bytes(part.read_bytes()[:-1])
        elif damage == "gone":
            part.unlink()
        else:
            (work / "part-00009.jsonl").write_bytes(b"x")
    clean(inputs(raw), tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_a_bad_row_stops_and_leaves_nothing(raw: Path, tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    for verb in VERBS.values():
        with pytest.raises(DatasetError) as caught:
            verb(inputs(raw, on_bad_row="stop"), tmp_path / "out", byte_tokenizer, Means())
        assert caught.value.line == 51
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_two_do_not_write_at_once(raw: Path, tmp_path: Path) -> None:
    clean(inputs(raw), tmp_path / "out")
    before = hashes(tmp_path / "out")
    with pytest.raises(KibanError, match="exists already"):
        clean(inputs(raw), tmp_path / "out")
    assert hashes(tmp_path / "out") == before
    with growing_folder(tmp_path / "busy", {}) as folder:
        folder.append("a", b"a")
        with pytest.raises(KibanError, match="another process"):
            clean(inputs(raw), tmp_path / "busy")
    assert (tmp_path / "busy" / "a").read_bytes() == b"a"


def test_rows_in_must_add_up(raw: Path, tmp_path: Path) -> None:
    """A file that grows while it is read is noticed by the second pass."""
    source = tmp_path / "a.jsonl"
    source.write_bytes((raw / "c.jsonl").read_bytes())
    size = source.stat().st_size

    def grow(stage: str, documents: int, done: int, total: int) -> None:
        if stage == "writing" and source.stat().st_size == size:
            with source.open("ab") as file:
                file.write((raw / "c.jsonl").read_bytes())

    with pytest.raises(DatasetError, match="changed while it was read"):
        dedup(inputs(source), tmp_path / "out", means=Means(watch=grow))


def test_memory_is_bounded_by_blocks(tmp_path: Path) -> None:
    """Ten times the text takes no more memory to clean; in a process of its own, since the peak of one never falls."""
    code = """
import resource, sys
from pathlib import Path
from kiban.data.clean import clean
from kiban.data.prepare import Inputs
clean(Inputs(paths=(Path(sys.argv[1]),)), Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks, texts = [], descriptions("ja", 2000)
    for times in (1, 10):
        source = tmp_path / f"{times}.jsonl"
        with source.open("w", encoding="utf-8") as file:
            for i in range(times):
                file.writelines(json.dumps({"text": f"{i} {text}"}) + "\n" for text in texts)
        command = [sys.executable, "-c", code, str(source), str(tmp_path / f"out{times}")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout))
    assert peaks[1] < peaks[0] * 1.15, peaks
