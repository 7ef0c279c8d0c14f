"""Outdated entries of a cache, read again where the present code gives the same numbers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from cache.address import FingerprintInfo
from cache.dtypes import Dtype
from cache.store import Store
from extract.activations.activations import Activations
from extract.activations.adoption import adopt, compare, sample
from extract.activations.fingerprints import describe, fingerprint, settings
from extract.activations.stored import Cached
from extract.backbone.imported import AnyBackbone
from extract.sampling.spans import Span
from extract.settings.sampling import Direction, SpanKind
from train.cache_entries.verdicts import has_weights, is_found_as
from train.config import Experiment
from train.data.cached import evaluation_spans, training_spans
from train.data.items import VideoItem
from train.data.truth import load_annotations, target_classes
from train.data.videos import load_subsets
from train.detector.sources import build_detector, merge_configs, read_sources
from train.engine.checkpoint import is_checkpoint
from train.engine.session import inference_accelerator

ADOPTED_SPANS = 8  # computed again of every dtype, direction and kind of span


def adopt_entry(
    url: str,
    prefix: str,
    checkpoint: str | None,
    config_file: str | None,
    overrides: Sequence[str],
) -> str:
    """Let an outdated entry be read again if its numbers are those of the present code.

    Args:
        prefix: of its fingerprint.
        checkpoint: None takes the file that it came from.
        config_file: of the experiment; None takes the checkpoint's.

    Returns:
        What was compared.

    Raises:
        ValueError: the numbers or the weights differ, or nothing can be compared.
    """
    with Store.open(url, "a") as store, TemporaryDirectory() as aside:
        info = _entry(store, prefix)
        config, backbones, items = _experiment(store, info, checkpoint, config_file, overrides)
        of = settings(config.backbone, config.pixels, config.training.precision)
        descriptions = [(backbone, describe(backbone, of).get(info.cut)) for backbone in backbones]
        fitting = [(b, d) for b, d in descriptions if d is not None and has_weights(info, b, d)]
        if not fitting:
            raise ValueError(
                f"--adopt: {info.fingerprint[:12]} does not have these weights; there is "
                "nothing to adopt, compute its activations with `python extract/run.py`"
            )
        backbone, now = fitting[0]
        if is_found_as(info, now):
            return f"{info.fingerprint[:12]} is true already"
        found = []
        for dtype, direction, kind in _groups(store, info):
            old = Cached(store, info.cut, info.fingerprint, dtype)
            spans = list(sample(_stored_spans(old, items, config, direction, kind), ADOPTED_SPANS))
            group = f"{dtype}, {direction}, {kind} spans"
            if not spans:
                raise ValueError(
                    f"--adopt: none of the {group} of {info.fingerprint[:12]} is one of the "
                    "experiment's and has its video here, so nothing can be compared"
                )
            cache = replace(config.cache, dtype=dtype)
            with Store.open(Path(aside) / group, "a") as empty:
                new = Activations(
                    empty, backbone, config.pixels, config.training.precision, cache, "adopted"
                )
                found.append(compare(group, old, new, spans))
                new.close()
        lines = "\n  ".join(map(str, found))
        if not all(each.holds for each in found):
            raise ValueError(
                f"--adopt: {info.fingerprint[:12]} does not have the numbers that the present code "
                f"gives; it is not adopted:\n  {lines}"
            )
        adopt(store, info, fingerprint(now))
        return f"{info.fingerprint[:12]} is read again, as {fingerprint(now)[:12]}:\n  {lines}"


def _entry(store: Store, prefix: str) -> FingerprintInfo:
    found = [info for name, info in store.fingerprints.items() if name.startswith(prefix)]
    if len(found) != 1 or "imported" in found[0].about:
        raise ValueError(
            f"--adopt: {len(found)} fingerprints in {store.url} begin with {prefix!r}; give that "
            "of one entry, as the table shows it (imported features are never outdated)"
        )
    return found[0]


def _experiment(
    store: Store,
    info: FingerprintInfo,
    checkpoint: str | None,
    config_file: str | None,
    overrides: Sequence[str],
) -> tuple[Experiment, list[AnyBackbone], list[VideoItem]]:
    """Return the experiment of an entry, its backbones and its videos."""
    for origin in info.checkpoint.split("\n"):
        if checkpoint is None and config_file is None and origin.endswith((".yaml", ".yml")):
            config_file = origin
        elif checkpoint is None and is_checkpoint(origin, Experiment):
            checkpoint = origin
    if checkpoint is None and config_file is None:
        raise ValueError(f"--adopt: {info.checkpoint} is not here; give --checkpoint or --config")
    sources = read_sources([checkpoint] if checkpoint else [], config_file, overrides)
    config = merge_configs(config_file, sources, overrides)
    accelerator = inference_accelerator(config)
    annotations = load_annotations(config.data)
    detector = build_detector(config, target_classes(config.data, annotations), sources)
    data = config.data
    subsets = {data.train_subset, data.validation_subset or data.test_subset, data.test_subset}
    loaded = load_subsets(
        data, annotations, sorted(subsets), accelerator, store, sampling_fps=config.sampling.fps
    )
    streams = detector.to(accelerator.device).eval().streams
    backbones: list[AnyBackbone] = [stream.backbone for stream in streams]
    return config, backbones, [item for items in loaded for item in items]


def _groups(store: Store, info: FingerprintInfo) -> list[tuple[Dtype, Direction, SpanKind]]:
    """Return as what kinds of numbers and spans an entry is stored."""
    found = {
        (summary.dtype, summary.direction, summary.span)
        for summary in store.summaries()
        if summary.fingerprint == info.fingerprint and summary.spans
    }
    return cast(list[tuple[Dtype, Direction, SpanKind]], sorted(found))


def _stored_spans(
    old: Cached,
    items: Sequence[VideoItem],
    config: Experiment,
    direction: Direction,
    kind: SpanKind,
) -> list[Span]:
    """Return the experiment's spans that an entry has and whose videos are here."""
    sampling = config.sampling
    spans = training_spans(items, sampling, direction, kind)
    for overlap in {sampling.test_overlap, sampling.validation_overlap}:
        spans += evaluation_spans(items, overlap, sampling, direction, kind)
    return [span for span in spans if span.path.exists() and old.contains(span)]
