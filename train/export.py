"""A network as one program without Python: ONNX and torch.export, checked against PyTorch."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from configs.atomic import atomic_path
from configs.messages import format_bytes
from extract.backbone import backbone as trunk_module
from extract.sampling.reversal import reflection
from train.detector.model import Detector
from train.engine.checkpoint import is_checkpoint
from train.recognition.config import Recognition
from train.recognition.recogniser import Recogniser

TOLERANCE = 1e-4  # of scores, and of distances as a share of those above 1
NEEDED = ("onnx", "onnxscript", "onnxruntime")
LARGEST = 2_000_000_000  # bytes of an ONNX file; beyond, weights lie in a file beside it
RUNS = 3  # timed, after one that is not


class NamedNetwork(nn.Module):
    """A network that maps the tensors of `inputs`, in this order, to those of `outputs`."""

    inputs: list[str]
    outputs: list[str]

    def example(self, seed: int = 0) -> tuple[Tensor, ...]:
        """Return random inputs."""
        raise NotImplementedError

    def comparisons(self) -> list[tuple[Tensor, ...]]:
        """Return inputs, others than the example, for which an exported network is compared."""
        raise NotImplementedError


class WindowDetector(NamedNetwork):
    """A detector's backbones, heads and fusion for one window.

    Attributes:
        inputs: `frames_<direction>` of every stream: uint8 RGB [1, 3, F, size, size], in the
            stream's own order with padding at the end; `mask`: bool [1, T], true where a feature
            step is valid; for streams of both directions `reflection`: [1], where time t of one is
            R - t of the other, in feature steps.
        outputs: for every level l, `scores_l` [1, K, T / 2^l] in [0, 1] and `distances_l`
            [1, 2, T / 2^l], back to the start and on to the end in strides of 2^l feature steps;
            with the direction after the name where the result is not in the first stream's time.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self.eval()
        directions = detector.config.directions
        twice = len(set(directions)) < len(directions)
        names = [f"frames_{d}{number + 1 if twice else ''}" for number, d in enumerate(directions)]
        self.opposed = len(set(directions)) > 1
        self.inputs = [*names, "mask", *(["reflection"] if self.opposed else [])]
        levels = range(detector.config.head.levels)
        parts = [""] if detector.fusion is not None or not names[1:] else [f"_{n}" for n in names]
        self.outputs = [
            f"{what}_{level}{part.replace('frames_', '')}"
            for part in parts
            for level in levels
            for what in ("scores", "distances")
        ]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return scores and distances, level by level."""
        detector = self.detector
        streams = len(detector.streams)
        mask = inputs[streams]
        turned = inputs[-1] if self.opposed else mask.new_zeros(len(mask), dtype=torch.float32)
        features = detector.features(inputs[:streams], None)
        found: list[Tensor] = []
        for output, _ in detector.predict(features, mask, turned)[detector.main_output]:
            for logits, distances in zip(output.logits, output.distances, strict=True):
                found += [logits.sigmoid(), distances]
        return tuple(found)

    def example(self, seed: int = 0) -> tuple[Tensor, ...]:
        """Return random inputs of a full window."""
        config, rng = self.detector.config, torch.Generator().manual_seed(seed)
        sampling, size = config.sampling, config.pixels.size
        length = sampling.window_size * sampling.scale_factor
        shape = (1, 3, length, size, size)
        frames = [
            torch.randint(256, shape, dtype=torch.uint8, generator=rng)
            for _ in self.detector.streams
        ]
        inputs = [*frames, torch.ones(1, sampling.window_size, dtype=torch.bool)]
        if self.opposed:
            inputs.append(torch.tensor([full_reflection(length, sampling.scale_factor)]))
        return tuple(inputs)

    def comparisons(self) -> list[tuple[Tensor, ...]]:
        """Return a full window, and one with padding."""
        streams = len(self.detector.streams)
        padded = list(self.example(seed=2))
        padded[streams] = padded[streams].clone()
        valid = padded[streams].shape[1] * 3 // 4
        padded[streams][:, valid:] = False
        if self.opposed:
            scale = self.detector.config.sampling.scale_factor
            padded[-1] = torch.tensor([full_reflection(valid * scale, scale)])
        return [self.example(seed=1), tuple(padded)]


class ViewRecogniser(NamedNetwork):
    """An action recogniser's network for one view of a clip.

    Attributes:
        inputs: `frames`: uint8 RGB [1, 3, T, size, size], in the recogniser's direction.
        outputs: `scores` [1, K], which sum to 1; of two label sets `scores_<set>` of each.
    """

    def __init__(self, recogniser: Recogniser) -> None:
        super().__init__()
        self.network = recogniser.network
        self.config = recogniser.config
        self.eval()
        self.sizes = [len(each.classes) for each in recogniser.sets]
        self.inputs = ["frames"]
        names = [each.name for each in recogniser.sets]
        self.outputs = [f"scores_{name}" if name else "scores" for name in names]

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Return the classes' scores, a tensor for each label set."""
        logits = self.network(frames)
        return tuple(part.softmax(1) for part in logits.split(self.sizes, 1))

    def example(self, seed: int = 0) -> tuple[Tensor, ...]:
        """Return a random view of a test."""
        rng = torch.Generator().manual_seed(seed)
        size = self.config.crops.test_size
        shape = (1, 3, self.config.views.frames, size, size)
        return (torch.randint(256, shape, dtype=torch.uint8, generator=rng),)

    def comparisons(self) -> list[tuple[Tensor, ...]]:
        """Return two views."""
        return [self.example(seed=1), self.example(seed=2)]


def full_reflection(samples: int, scale_factor: int) -> float:
    """Return R of a window without padding, in feature steps of `scale_factor` samples."""
    return reflection(0.0, float(samples - 1), float(scale_factor))


def load_for_export(path: Path, option: str) -> NamedNetwork:
    """Return the detector or the recogniser of a checkpoint, ready to be exported.

    Raises:
        ValueError: it cannot be; names the option.
    """
    if is_checkpoint(path, Recognition):
        return ViewRecogniser(Recogniser.from_checkpoint(path))
    detector = Detector.from_pretrained(path)
    if detector.config.backbone.mode == "imported":
        raise ValueError(f"{option}: {path} reads features of another network, not pixels")
    return WindowDetector(detector)


def export_onnx(path: Path, out: Path) -> str:
    """Write a checkpoint's network as ONNX; return what it is and how it compares with PyTorch.

    Raises:
        ValueError: it cannot be exported, a package is missing, or the results differ.
    """
    if out.suffix != ".onnx":
        raise ValueError(f"--onnx: {out} must end in .onnx")
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ValueError(f"--onnx: install what it needs: `pip install {' '.join(missing)}`")
    import onnxruntime

    out.parent.mkdir(parents=True, exist_ok=True)
    network = load_for_export(path, "--onnx")
    inputs = network.example()
    with torch.no_grad(), _whole_clips():
        program = torch.onnx.export(
            network,
            inputs,
            input_names=network.inputs,
            output_names=network.outputs,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    beside = sum(tensor.nbytes for tensor in network.state_dict().values()) > LARGEST

    def run(file: Path) -> Callable[[Sequence[Tensor]], list[NDArray[Any]]]:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(
            network.outputs,
            {name: x.numpy() for name, x in zip(network.inputs, inputs, strict=True)},
        )

    if beside:  # its name is in the file: neither can be renamed
        program.save(str(out), external_data=True)
        return _compare(network, out, run(out), "ONNX Runtime")
    with atomic_path(out) as aside:
        program.save(str(aside), external_data=False)
        told = _compare(network, aside, run(aside), "ONNX Runtime")
    return told


def export_torch(path: Path, out: Path) -> str:
    """Write a checkpoint's network with torch.export; return what it is and how it compares.

    Raises:
        ValueError: it cannot be exported, or the results differ.
    """
    if out.suffix != ".pt2":
        raise ValueError(f"--torch-export: {out} must end in .pt2")
    out.parent.mkdir(parents=True, exist_ok=True)
    network = load_for_export(path, "--torch-export")
    with torch.no_grad(), _whole_clips():
        program = torch.export.export(network, network.example())
    with atomic_path(out) as aside:
        with aside.open("wb") as file:
            torch.export.save(program, file)
        with aside.open("rb") as file:
            loaded = torch.export.load(file).module()
        return _compare(
            network, aside, lambda inputs: [x.numpy() for x in loaded(*inputs)], "torch.export"
        )


def _compare(
    network: NamedNetwork,
    file: Path,
    run: Callable[[Sequence[Tensor]], list[NDArray[Any]]],
    what: str,
) -> str:
    """Return inputs, outputs, size, largest difference and CPU times of an exported network.

    Raises:
        ValueError: its results differ from PyTorch's.
    """
    windows = network.comparisons()
    largest = 0.0
    with torch.no_grad():
        for inputs in windows:
            for ours, theirs in zip(network(*inputs), run(inputs), strict=True):
                off = np.abs(ours.numpy() - theirs) / np.maximum(1, np.abs(ours.numpy()))
                largest = float(np.maximum(largest, off.max()))  # NaN is the largest
        if not largest <= TOLERANCE:
            raise ValueError(
                f"{what} does not give PyTorch's results: they differ by {largest:.2g}, more than "
                f"{TOLERANCE:g}; nothing is written"
            )
        seconds = _cpu_s(lambda: network(*windows[0])), _cpu_s(lambda: run(windows[0]))
    shapes = ", ".join(
        f"{name} {str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
        for name, x in zip(network.inputs, windows[0], strict=True)
    )
    return (
        f"{format_bytes(file.stat().st_size)}; differs from PyTorch by at most {largest:.1g}; CPU "
        f"time: {seconds[0]:.2f} s with PyTorch, {seconds[1]:.2f} s with {what}\n"
        f"  inputs: {shapes}\n  outputs: {', '.join(network.outputs)}"
    )


def _cpu_s(call: Callable[[], object]) -> float:
    """Return the CPU seconds of a call, the median of several."""
    call()
    took = []
    for _ in range(RUNS):
        began = time.process_time()
        call()
        took.append(time.process_time() - began)
    return sorted(took)[RUNS // 2]


@contextmanager
def _whole_clips() -> Iterator[None]:
    """Let the transformer take all clips at once, of which the program would get a copy each."""
    before, trunk_module.CPU_ELEMENTS = trunk_module.CPU_ELEMENTS, 2**62
    try:
        yield
    finally:
        trunk_module.CPU_ELEMENTS = before
