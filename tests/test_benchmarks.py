"""The benchmarks of sizes and GPUs: what they count, and that they run where there is no GPU."""

import gc
import json
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import train.device.memory
from benchmarks import cases, compare, gpu_heads, gpu_loop, gpu_parts, gpu_ranks, sizes
from benchmarks import gpu_steps as gpu
from benchmarks.gpu import PARTS, format_part, run_part
from benchmarks.gpu_checkpoints import time_checkpoints
from benchmarks.gpu_parts import Plan, Row
from benchmarks.sizes import FILES
from extract.backbone.adapters import TemporalAdapter
from extract.backbone.precision import computing_in
from extract.settings.backbone import Precision
from extract.settings.units import CLIP_FRAMES, CLIP_STEPS, TUBELET
from tests.conftest import REPOSITORY, SHARDS_ON_CPUS
from tests.test_frozen import Calls
from tests.test_gradients import run_sharded
from tests.test_memory import LONG, SIDE
from tests.test_precision import FLAGS, flags


def products(size: str) -> tuple[int, int, int]:
    """Return operations of linear layers and attention of the blocks, and of all adapters.

    Two for each multiplication of m·n·k.
    """
    whole = sizes.experiment(size)
    config, frames, pixels = whole.backbone, whole.sampling.samples, whole.pixels.size
    width, depth, patch = config.trunk.width, config.trunk.depth, config.trunk.patch
    hidden, narrow = round(width * config.trunk.mlp_ratio), int(width * config.adapter_ratio)
    clip = CLIP_STEPS * (pixels // patch) ** 2  # tokens that see each other
    tokens = frames // CLIP_FRAMES * clip
    linear = 2 * tokens * width * (3 * width + width + 2 * hidden)
    attention = 2 * 2 * tokens * clip * width
    adapter = 2 * tokens * (2 * width * narrow + narrow * narrow + 3 * narrow)
    return depth * linear, depth * attention, len(config.adapted_blocks) * adapter


@pytest.mark.parametrize(
    "size",
    [pytest.param(s, marks=[] if s[0] in "sb" else pytest.mark.slow) for s in sizes.FILES],
)
def test_operations_are_those_of_the_products(size: str) -> None:
    config = sizes.experiment(size)
    trunk = config.backbone.trunk
    linear, attention, adapters = products(size)
    tokens = config.sampling.samples // TUBELET * (config.pixels.size // trunk.patch) ** 2
    embedding = 2 * tokens * (3 * TUBELET * trunk.patch**2) * trunk.width
    cost = sizes.count_forward_flops(size)
    assert cost.transformer == pytest.approx(embedding + linear + attention, rel=0.01)
    assert cost.adapters == pytest.approx(adapters, rel=0.01)
    assert cost.total == cost.transformer + cost.adapters + cost.head


@pytest.mark.slow
def test_a_training_step_needs_what_learning_passes_back() -> None:
    """Gradients of frozen layers' weights are none of it, and block 0 has nothing to pass back."""
    config = sizes.experiment("s")
    assert config.backbone.recompute != "none"  # what is recomputed does not count
    config = replace(config, training=replace(config.training, global_batch=1))
    linear, attention, adapters = products("s")
    cost, blocks = sizes.count_forward_flops("s"), 11 / 12
    backward = blocks * (linear + 2 * attention) + 2 * (adapters + cost.head)
    assert gpu.count_training_flops(config) == pytest.approx(cost.total + backward, rel=0.01)
    extraction = gpu.count_extraction_flops(config)
    assert extraction == cost.transformer + cost.adapters
    two = replace(config, training=replace(config.training, global_batch=2))
    assert gpu.count_extraction_flops(two) == 2 * extraction


@pytest.mark.parametrize("size", [*"sblh", "v2-g"])
def test_weights_are_as_many_as_the_reference_has(shared: Path, size: str) -> None:
    """It has an adapter in every block, a norm that it never uses, and positions as a buffer."""
    file = shared / "golden/sizes/videomae_meta.json"
    if not file.is_file():
        pytest.skip("reference numbers of real sizes are not here")
    reference = json.loads(file.read_text())[size.removeprefix("v2-")]
    trunk, cost = sizes.experiment(size).backbone.trunk, sizes.count_weights(size)
    assert trunk.depth == reference["cfg"]["depth"]
    assert cost.transformer + cost.adapters + 2 * trunk.width == reference["params"]


def test_the_table_names_what_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "FILES", {"s": sizes.FILES["s"]})
    header, line = sizes.size_table()
    assert dict(zip(header, line, strict=True))["transformer"] == "21.88 M"


@pytest.mark.slow
def test_gpu_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--sizes", "tiny", "--repeats", "1", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.gpu_steps", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("gpu-cpu-*.json")
    result = json.loads(file.read_text())
    assert result["torch"] and result["matrix_flops_per_s"] > 0
    rows = result["rows"]
    assert [(row["work"], row["compiled"]) for row in rows] == [
        (work, compiled) for work in ("training", "extraction") for compiled in (False, True)
    ]
    assert not [row for row in rows if "failed" in row]
    assert all(row["frames_per_s"] > 0 and row["share"] > 0 for row in rows)
    assert "compiled" in file.with_suffix(".txt").read_text()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory of a process")
def test_loading_benchmark_runs() -> None:
    command = [sys.executable, "-m", "benchmarks.loading", "--size", "tiny", "--repeats", "1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = [line.split(",")[0] for line in done.stdout.splitlines()]
    assert names == ["tiny.pth", "tiny.safetensors"]


def test_gpu_benchmark_says_that_it_needs_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^no GPU .*only tries the script$"):  # text: status 1
        gpu.main()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to …"), "out of memory"),
        (RuntimeError("first line\nand more"), "RuntimeError: first line"),
    ],
)
def test_what_fails_is_told_and_the_rest_goes_on(error: RuntimeError, told: str) -> None:
    def build() -> gpu.Step:
        raise error

    assert gpu.measure(build, 1, "cpu") == {"failed": told}
    assert gpu.measure(lambda: lambda: torch.full((1,), torch.nan), 1, "cpu") == {
        "failed": "the result is not finite"
    }
    assert "failed" not in gpu.measure(lambda: lambda: torch.zeros(1), 1, "cpu")


def test_comparisons_take_medians_and_ratios() -> None:
    turns = [
        {"seconds": s, "cpu_s": c, "peak_bytes": 100, "result": r}
        for s, c, r in ((1.0, 5.0, 7), (9.0, 3.0, 7), (2.0, 4.0, 8))
    ]
    ours = compare.summarise(turns)
    assert ours["seconds"] == 2 and ours["cpu_s"] == 4 and ours["cpu_s_range"] == [3, 5]
    assert ours["result"] == 8
    other = ours | {"cpu_s": 8.0}
    assert compare.compare({"now": ours, "against": other})["cpu_s"] == 0.5
    assert compare.compare({"now": ours}) == {}


def test_processor_time_of_children_counts() -> None:
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ninput()"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as child:
        assert child.stdout and child.stdout.readline() == "done\n"
        before = time.process_time()
        found = cases.whole_process(time.perf_counter(), None)
        assert found["cpu_s"] > before + 0.25
        child.communicate("")


@pytest.mark.slow
@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="there is no other commit")
def test_two_commits_take_turns(tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    command = [sys.executable, "-m", "benchmarks.compare", "map", "--against", "HEAD"]
    command += ["--turns=1", "--repeats=1", f"--out={file}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert report == json.loads(done.stdout)
    ours, other = report["commits"].values()
    assert ours["result"] == other["result"] and 0.3 < report["ratio"]["cpu_s"] < 3
    listed = ["git", "worktree", "list"]
    kept = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "against" not in kept.stdout


def test_both_sides_detect_with_checkpoints_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was written by other code may be read in another way, or not at all."""
    homes = {"now": cases.HOME, "other, against": tmp_path}
    asked = list[tuple[Path, str, Path]]()

    def run_case(home: Path, case: str, options: list[str]) -> dict[str, Any]:
        (checkpoint,) = (o.partition("=")[2] for o in options if o.startswith("--checkpoint="))
        asked.append((home, case, Path(checkpoint)))
        return {"seconds": 1.0, "cpu_s": 1.0, "peak_bytes": 1, "result": {}}

    monkeypatch.setattr(compare, "run_case", run_case)
    monkeypatch.setattr(compare, "worktrees", lambda against: nullcontext(homes))
    video, ours = tmp_path / "a.mp4", tmp_path / "ours.pt"
    for file in (video, ours):
        file.touch()
    arguments = ["compare", "detection", "--turns=1", f"--video={video}"]
    monkeypatch.setattr(sys, "argv", arguments)
    compare.main()
    written = {home: file for home, case, file in asked if case == "checkpoint"}
    assert len(set(written.values())) == 2
    read = [(home, file) for home, case, file in asked if case == "detection"]
    assert read == [*written.items()] * 2

    asked.clear()
    monkeypatch.setattr(sys, "argv", [*arguments, f"--checkpoint={ours}"])
    compare.main()
    assert {(case, file) for _, case, file in asked} == {("detection", ours)}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nms", "--turns=0"], "--turns: give 1 or more"),
        (["nms", "--repeats=0"], "--repeats: give 1 or more"),
        (["demo", "--epochs=0"], "--epochs: give 1 or more"),
        (["video", "--video=nowhere.mp4"], "--video: there is no nowhere.mp4"),
        (["map", "--annotations=nowhere.json"], "--annotations: there is no nowhere.json"),
    ],
)
def test_what_cannot_be_compared_is_told_first(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["compare", *arguments])
    with pytest.raises(SystemExit, match="2"):
        compare.main()
    assert told in capfd.readouterr().err


@pytest.mark.parametrize("case", ["map", "head"])
def test_a_case_says_what_came_out(case: str, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr(cases, "PREDICTIONS", 500)
    monkeypatch.setattr(cases, "HEAD_STEPS", 64)
    monkeypatch.setattr(sys, "argv", ["cases.py", case, "--repeats=1"])
    cases.main()
    found = json.loads(capfd.readouterr().out)
    assert found["cpu_s"] > 0 and found["peak_bytes"] > 1e6 and found["result"] > 0


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the plan for a GPU, run small on a CPU."""
    file = tmp_path_factory.mktemp("plan") / "found" / "cpu.json"
    arguments = ["--small", "--device", "cpu", "--out", str(file)]
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return file


def rows_of(planned: Path, name: str) -> list[Row]:
    (part,) = (p for p in json.loads(planned.read_text())["parts"] if p["part"] == name)
    rows: list[Row] = part["rows"]
    return rows


@pytest.mark.slow
def test_the_plan_for_a_gpu_runs_small_on_a_cpu(planned: Path) -> None:
    result, table = json.loads(planned.read_text()), planned.with_suffix(".md").read_text()
    assert [part["part"] for part in result["parts"]] == [*PARTS]
    for part in result["parts"]:
        assert part["rows"] and part["failed"] is None, part
        assert not [row for row in part["rows"] if row.get("failed")], part
        assert not any(row.get("recompiled") for row in part["rows"]), part
        assert f"## {part['part']}" in table


@pytest.mark.slow
def test_heads_are_trained_in_every_way(planned: Path) -> None:
    alone, running = rows_of(planned, "heads"), rows_of(planned, "head training")
    assert [row["way"] for row in alone] == [*gpu_heads.WAYS]
    assert [row["way"] for row in alone if "skipped" in row] == [gpu_heads.GRAPH]
    assert [row["compile"] for row in running] == ["off", "all"]
    for row in [*alone, *running]:
        assert "skipped" in row or (row["updates_per_s"] > 0 and row["recompiled"] == 0)


@pytest.mark.slow
def test_a_resumed_run_is_the_one_that_went_on(planned: Path) -> None:
    (row,) = rows_of(planned, "resuming")
    assert row["updates"] == 6 and row["resumed_after"] == 3
    assert row["between_runs"] == row["after_resuming"] == 0


@pytest.mark.slow
def test_stages_of_extraction_and_validation_are_timed_apart(planned: Path) -> None:
    rows = rows_of(planned, "extraction by stages")
    assert [row["cut"] for row in rows] == [3, "features"]
    for row in rows:
        for stage in ("decode", "copy", "compute", "fetch", "write", "together"):
            assert row[f"{stage}_frames_per_s"] > 0
        assert "-bound: waited " in row["said"] and "\n" not in row["said"]
    (row,) = rows_of(planned, "validation")
    assert row["windows"] == 8 and row["network_s"] > 0 and row["suppression_s"] > 0
    assert row["candidates"] > row["detections"] > 0


@pytest.mark.slow
def test_two_processes_learn_what_one_does_and_end_together(planned: Path) -> None:
    (row,) = rows_of(planned, "two processes")
    assert row["backend"] == "gloo" and row["largest_error"] < 1e-4
    assert row["all_ended_after_s"] < 60
    half, whole = (gpu_ranks.learn(Plan("cpu", small=True), 0, count)[1] for count in (2, 1))
    assert max(gpu_parts.relative_error(half[name], whole[name]) for name in whole) > 0.1
    AcceleratorState._reset_state(reset_partial_state=True)


@SHARDS_ON_CPUS
@pytest.mark.slow
def test_checkpoints_of_sharded_weights_are_as_large_as_others(tmp_path: Path) -> None:
    """Launched by hand, as Accelerate shards on GPUs alone."""
    one, two = time_checkpoints(Plan("cpu", small=True))
    assert two == {"processes": 2, "skipped": "sharding is for GPUs"}
    file = tmp_path / "row.json"
    script = "benchmarks/gpu_checkpoints.py"
    printed = run_sharded(script, "--device=cpu", "--size=tiny", f"--out={file}")
    assert "'Detector': 2" in printed  # the run, and the one that resumed
    sharded = json.loads(file.read_text())
    assert set(one) == {"size", "processes", *sharded}
    for name, value in sharded.items():
        if name.endswith("_s"):
            assert value > 0 and one[name] > 0
        else:
            assert value == pytest.approx(one[name], rel=0.01)
    assert one["whole_bytes"] >= one["last_bytes"] > 1e5
    AcceleratorState._reset_state(reset_partial_state=True)


def test_one_gpu_has_no_processes_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert [*PARTS["two processes"](Plan("cuda", small=False))] == [{"skipped": "there is one GPU"}]


def test_kernels_of_attention_are_told_by_their_names() -> None:
    def attend() -> Tensor:
        return F.scaled_dot_product_attention(*torch.randn(3, 1, 1, 4, 8))

    plan = Plan("cpu", small=True)
    assert 0 < gpu_parts.describe_enqueueing(attend, plan)["attention_share"] < 1
    other = gpu_parts.describe_enqueueing(lambda: torch.randn(4).cumsum(0), plan)
    assert other["kernels"] > 0 and other["attention_share"] == 0


@pytest.mark.slow
def test_what_is_compiled_after_the_warm_up_is_counted() -> None:
    sizes = iter(range(2, 20))
    double = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)
    changing = gpu.measure(lambda: lambda: double(torch.ones(next(sizes))), 2, "cpu")
    assert changing["recompiled"] == 3  # two steps that are timed, one whose result is looked at
    assert gpu.measure(lambda: lambda: double(torch.ones(3)), 2, "cpu")["recompiled"] == 0


class Seen(Exception):
    pass


def see_run(*_: Any, **more: Any) -> Any:
    raise Seen


BUILDS: dict[str, Any] = {
    "training": lambda plan, config: gpu.build_training_step(config, plan.device, False),
    "extraction": lambda plan, config: gpu.build_extraction_step(config, plan.device, False),
    "head": lambda plan, config: gpu_heads.build_head_step(config, plan, "lists kept"),
    "loop": lambda plan, config: gpu_loop.measure_loop(plan, config, gpu_loop.SMALL_CASES[0], []),
}


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("work", BUILDS)
def test_what_is_timed_is_computed_as_a_run_does(
    work: str, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_loop, "DetectionTask", see_run)
    config = gpu.settings("tiny", 1, "none", str(tmp_path / "run"), precision)
    other: Precision = "fp32" if precision == "tf32" else "tf32"
    with computing_in(other, torch.device("cpu")):
        with suppress(Seen):
            BUILDS[work](Plan("cpu", small=True), config)
        assert flags() == FLAGS[precision]
    AcceleratorState._reset_state(reset_partial_state=True)


def test_extraction_is_timed_with_what_is_held(tmp_path: Path) -> None:
    config = gpu.settings("tiny", 1, "none", str(tmp_path))
    step = gpu.build_extraction_step(config, "cpu", False)
    with Calls() as calls:
        step()
    width = config.backbone.width
    assert not calls.cast[(3 * width, width)] and not calls.seen["zeros_like"]


def test_the_adapters_are_compiled_as_in_a_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setitem(gpu.BACKENDS, "cpu", counter)
    torch._dynamo.reset()
    gpu.build_extraction_step(gpu.settings("tiny", 1, "none", str(tmp_path)), "cpu", True)()
    assert counter.frame_count == 2, "blocks, which are alike, and adapters"


@pytest.mark.parametrize(("free", "chosen"), [(1e12, "none"), (1e6, "full")])
def test_what_a_run_would_recompute_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: float, chosen: str
) -> None:
    monkeypatch.setattr(train.device.memory, "free_bytes", lambda device, processes: free)
    config = gpu.settings("tiny", 1, "auto", str(tmp_path))
    assert gpu.settle(config, "cpu").backbone.recompute == chosen
    asked = replace(config, backbone=replace(config.backbone, recompute="selective"))
    assert gpu.settle(asked, "cpu") == asked


def test_a_run_that_is_over_takes_no_memory_from_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Over:
        """As a network and its run, it is referred to by what it refers to."""

        def __init__(self) -> None:
            self.itself = self

    seen = list[bool]()

    def free(device: torch.device, processes: int) -> float:
        seen.append(gone() is None)
        return 1e12

    monkeypatch.setattr(train.device.memory, "free_bytes", free)
    config = gpu.settings("tiny", 1, "auto", str(tmp_path))
    gc.disable()  # large objects that have lived for long are seldom looked at
    try:
        gone = weakref.ref(Over())
        gpu.settle(config, "cpu")
    finally:
        gc.enable()
    assert seen == [True]


def test_the_sizes_whose_memory_is_in_doubt_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_parts, "settle", lambda config, device: config)
    monkeypatch.setattr(gpu_parts, "measure_training", lambda *_, **more: {})
    rows = [*gpu_parts.measure_memory(Plan("cuda", small=False))]
    measured = {(row["size"], row["windows"]) for row in rows if row["asked"] == "auto"}
    # What would not fit a card before (docs/gpus.md): long windows, alone and beside a ladder.
    assert {("h", 2), (LONG, 1), (LONG, 2), (SIDE, 2)} < measured <= {*product(FILES, (1, 2))}


def test_convolutions_are_compared_with_the_adapters_own() -> None:
    adapter, hidden = TemporalAdapter(16, 0.5).requires_grad_(False), torch.randn(2, 6, 4, 8)
    y = F.gelu(hidden)
    expected, bias = adapter._mix(hidden), adapter.depthwise.bias
    assert bias is not None
    for way in gpu_parts.ADAPTER_CONVS:
        z = way(y, adapter.depthwise.weight) + bias
        found = y + F.linear(z, adapter.pointwise.weight.squeeze(2), adapter.pointwise.bias)
        torch.testing.assert_close(found, expected)


def test_the_device_is_held_against_golden_numbers() -> None:
    rows = [*PARTS["golden numbers"](Plan("cpu", small=True))]
    assert [row.pop("precision") for row in rows] == ["fp32", "tf32"]
    assert all(error < 1e-5 for row in rows for error in row.values())


@pytest.mark.slow
def test_the_real_loop_says_how_busy_the_device_is() -> None:
    for row in PARTS["the real loop"](Plan("cpu", small=True)):
        assert row["updates"] == 3 and row["seconds_per_update"] > 0
        assert 0 < row["busy_share"] <= 1 and 0 <= row["said_to_wait"] < 1
        assert row["busy_share"] + row["said_to_wait"] == pytest.approx(1, abs=0.1)


def test_a_part_that_fails_keeps_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(plan: Plan) -> Iterator[Row]:
        yield {"way": "first"}
        raise RuntimeError("no such\nkernel")

    monkeypatch.setitem(PARTS, "memory", broken)
    part = run_part("memory", Plan("cpu", small=True))
    assert part["rows"] == [{"way": "first"}]
    assert part["failed"] == "RuntimeError: no such kernel"
    assert "| first |" in format_part(part) and "failed: RuntimeError" in format_part(part)
