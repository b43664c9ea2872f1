"""The command line of ``run``: its own flags, SGLang's behind them, mistakes told in a line."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from sglang.srt.blendserve import cli
from sglang.srt.blendserve.dispatch.engine_cost import kv_element_bytes
from sglang.srt.blendserve.run import flags
from sglang.srt.blendserve.run.failure import RunFailure
from sglang.srt.blendserve.runtime.cpu import defaults as cpu_defaults


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run")
    flags.add_arguments(parser)
    required = ("-i", "in.jsonl", "-o", "folder/out.jsonl", "--model-path", "m")
    return flags.parse_args(parser, [*required, *argv])


def test_sglang_s_flags_are_passed_on_in_order() -> None:
    args = parse(
        "--tp-size", "2", "--summary", "s.json", "--max-total-tokens=5", "--trust-remote-code"
    )
    assert args.server_flags == ["--tp-size", "2", "--max-total-tokens=5", "--trust-remote-code"]
    assert args.summary == Path("s.json")
    assert args.policy == "blendserve"


def test_an_abbreviation_of_ours_may_be_a_flag_of_sglang_s() -> None:
    assert parse("--max-in", "3").server_flags == ["--max-in", "3"]


def test_the_policy_goes_by_both_names() -> None:
    assert parse("--policy", "lpm").policy == parse("--schedule-policy", "lpm").policy == "lpm"


def test_errors_stand_beside_the_output() -> None:
    assert parse().errors == Path("folder/out.errors.jsonl")
    assert parse("--errors", "e").errors == Path("e")


@pytest.mark.parametrize(
    "argv",
    [
        ("--errors", "folder/out.jsonl"),
        ("--errors", "in.jsonl"),
        ("-o", "in.jsonl"),
        ("-o", "out.jsonl.gz"),
        ("--resume", "--overwrite"),
        ("--retry-errors", "--overwrite"),
        ("--max-in-flight", "0"),
    ],
)
def test_mistakes_end_with_status_2(argv: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*argv)
    assert ended.value.code == 2


SPELLINGS = {
    "symbolic link": lambda place: (place / "link").symlink_to(place / "in.jsonl") or "link",
    "hard link": lambda place: (place / "link").hardlink_to(place / "in.jsonl") or "link",
    "through a folder": lambda place: f"../{place.name}/in.jsonl",
    "a link to the folder": lambda place: (
        (place / "here").symlink_to(place, target_is_directory=True) or "here/in.jsonl"
    ),
}


@pytest.mark.parametrize("flag", ["--output", "--errors", "--summary"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_other_name_of_the_input_is_written_to(
    spelling: str,
    flag: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text("the only copy")
    name = SPELLINGS[spelling](tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(
            ["run", "-i", "in.jsonl", "-o", "o", "--model-path", "m", "--overwrite", flag, name]
        )
    assert ended.value.code == 2
    assert f"--input (in.jsonl) and {flag} ({name}) are one file" in capsys.readouterr().err
    assert (tmp_path / "in.jsonl").read_text() == "the only copy"


def test_the_file_behind_standard_input_is_the_input_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "in.jsonl"
    given.write_text("the only copy")
    with given.open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        with pytest.raises(SystemExit):
            parse("-i", "-", "-o", str(given))
        assert parse("-i", "-", "-o", str(tmp_path / "out")).output == tmp_path / "out"


@pytest.mark.parametrize(
    "argv",
    [
        ("-i", "folder/out.jsonl.run.json"),
        ("--summary", "folder/out.jsonl"),
        ("--errors", "./in.jsonl"),
    ],
)
def test_files_that_are_not_there_yet_are_compared_too(argv: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*argv)
    assert ended.value.code == 2


def test_no_other_flag_is_taken_from_sglang() -> None:
    ours = argparse.ArgumentParser(add_help=False)
    flags.add_arguments(ours)
    shared = set(ours._option_string_actions) & set(flags._sglang_parser()._option_string_actions)
    assert shared == {"--model-path", "--model", "--schedule-policy"}


def test_a_missing_model_folder() -> None:
    args = parse("--model-path", "/nowhere/model")
    with pytest.raises(RunFailure, match="no model folder /nowhere/model"):
        flags.server_args(args, has_gpu=True)


def test_defaults_without_a_gpu_give_way_to_what_is_given(tmp_path: Path) -> None:
    found = cpu_defaults.server_flags(str(tmp_path), ["--device=cpu", "--max-total-tokens", "9"])
    assert [flag for flag in found if flag.startswith("--")] == [
        "--sleep-on-idle",
        "--disable-overlap-schedule",
        "--sampling-backend",
        "--grammar-backend",
        "--cuda-graph-backend-decode",
        "--cuda-graph-backend-prefill",
    ]


def test_the_kv_cache_is_bounded_without_a_gpu(model: str) -> None:
    for where in (model, "a/name-on-a-hub"):
        found = cpu_defaults.server_flags(where)
        tokens = int(found[found.index("--max-total-tokens") + 1])
        assert 1024 <= tokens <= cpu_defaults.MAX_TOTAL_TOKENS


@pytest.mark.parametrize(
    ("given", "bf16_products", "free_bytes", "chosen"),
    [
        ([], False, 1e12, "float32"),
        ([], True, 1e12, None),
        (["--dtype=bfloat16"], False, 1e12, None),
        ([], False, 500e6, None),  # twice the weights are more than half of it
    ],
)
def test_float32_where_it_is_faster_and_fits(
    given: list[str],
    bf16_products: bool,
    free_bytes: float,
    chosen: str | None,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu_defaults, "has_bf16_products", lambda: bf16_products)
    monkeypatch.setattr(cpu_defaults, "_free_bytes", lambda: int(free_bytes))
    found = cpu_defaults.server_flags(model, given)
    assert ("--dtype" in found) == (chosen is not None)
    if chosen is not None:
        assert found[found.index("--dtype") + 1] == chosen


def test_a_kv_cache_in_float32_has_half_the_tokens(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tokens(bf16_products: bool) -> int:
        monkeypatch.setattr(cpu_defaults, "has_bf16_products", lambda: bf16_products)
        monkeypatch.setattr(cpu_defaults, "_free_bytes", lambda: 2_000_000_000)
        found = cpu_defaults.server_flags(model)
        return int(found[found.index("--max-total-tokens") + 1])

    assert tokens(True) == pytest.approx(2 * tokens(False), abs=1)


@pytest.mark.parametrize(
    ("flag", "size"), [("auto", 4), ("fp8_e4m3", 1), ("mxfp8", 1), ("bf16", 2), ("fp4_e2m1", 0.5)]
)
def test_elements_of_the_kv_cache(flag: str, size: float) -> None:
    assert kv_element_bytes(flag, model_bytes=4) == size


def test_the_environment_of_the_user_stays() -> None:
    environ = {"OMP_NUM_THREADS": "7", "SGLANG_USE_CPU_ENGINE": "0"}
    cpu_defaults.apply_environment(environ)
    assert environ["OMP_NUM_THREADS"] == "7"
    assert environ["SGLANG_USE_CPU_ENGINE"] == "0"
    assert environ["TORCHDYNAMO_DISABLE"] == "1"
