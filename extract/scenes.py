"""Synthetic scenes: bright shapes that act on faint, drifting textures.

A scene is a timeline of actors. Six actions come in three pairs that are each other's time
reversal; distractors move in ways that look the same in both directions of time. Coordinates are
in units of the frame's short side, with (0, 0) in its centre, so one scene can be drawn at any
size; times are in seconds, so it can be drawn at any frame rate.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

ACTIONS = ("SlideRight", "SlideLeft", "Grow", "Shrink", "TurnRight", "TurnLeft")
"""Class names in index order; 2i and 2i + 1 are each other's time reversal."""

DISTRACTORS = ("bob", "blink", "still")
EXTENTS = {  # of a slide in short sides, of sizes as a share, of a turn in radians
    "Slide": (0.4, 0.6),
    "Grow": (0.45, 0.65),
    "Shrink": (0.45, 0.65),
    "Turn": (1.6, 4.0),
    "bob": (0.08, 0.16),
    "blink": (0.5, 0.5),
    "still": (0.0, 0.0),
}
NEARER = 1.25  # shapes of clips to those of videos; turning ones twice
LANES = (-0.23, 0.23)  # two rows, so that overlapping actions do not hide each other


@dataclass(frozen=True)
class Actor:
    """One shape on screen from `start - lead` to `end + tail` (s), acting from start to end."""

    motion: str
    shape: str
    colour: tuple[float, float, float]
    x: float
    y: float
    size: float
    angle: float
    extent: float
    start: float
    end: float
    lead: float
    tail: float
    pause: float


@dataclass(frozen=True)
class Texture:
    """A sum of plane waves; each row is (frequency x, frequency y, phase, drift) per wave."""

    base: tuple[float, float, float]
    waves: NDArray[np.float64]
    tint: NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """A synthetic video, from which any moment can be rendered."""

    duration: float
    actors: tuple[Actor, ...]
    texture: Texture
    noise: float

    def actions(self) -> list[tuple[str, float, float]]:
        """Return (label, start_s, end_s) of every action, in order of start."""
        found = [(a.motion, a.start, a.end) for a in self.actors if a.motion in ACTIONS]
        return sorted(found, key=lambda action: action[1])


def random_scene(rng: np.random.Generator, duration: float, longest: float = 8.0) -> Scene:
    """Draw a scene of `duration` s: two lanes of actions, 0.5 to `longest` s each."""
    actors: list[Actor] = []
    for lane, y in enumerate(LANES):
        now = float(rng.uniform(0.2, 2.0) + 1.5 * lane)
        while True:
            acting = rng.random() < 0.72
            length = float(np.exp(rng.uniform(math.log(0.5), math.log(longest))))
            length = length if acting else min(length, 3.0)
            lead, tail = rng.uniform(0.1, 0.4, 2)
            start = now + float(lead)
            if start + length + tail > duration - 0.1:
                break
            actors.append(_random_actor(rng, acting, y, start, length, float(lead), float(tail)))
            now = start + length + float(tail) + float(rng.exponential(1.6)) + 0.15
    return Scene(duration, tuple(actors), _random_texture(rng), float(rng.uniform(2.0, 6.0)))


def random_clip(rng: np.random.Generator, action: str, duration: float) -> Scene:
    """Draw a scene that is little longer than its one action, with larger shapes.

    Turning shapes are bars that are about level half-way: from any angle, the direction of a turn
    is much harder to learn than everything else. In every other clip a distractor is drawn
    behind the action.
    """
    before, behind = (float(pause) for pause in rng.uniform(0.0, 0.3, 2))
    length = duration - before - behind
    actor = _random_actor(rng, True, 0.0, before, length, 0.3, 0.3, action)
    actor = replace(actor, y=float(rng.uniform(-0.15, 0.15)), size=NEARER * actor.size)
    if action.startswith("Turn"):
        angle = float(rng.uniform(-0.4, 0.4))
        actor = replace(actor, shape="bar", angle=angle, size=NEARER * actor.size)
    actors = [actor]
    if rng.random() < 0.5:
        lane = float(rng.choice(LANES))
        actors.insert(0, _random_actor(rng, False, lane, before, length, 0.3, 0.3))
    return Scene(duration, tuple(actors), _random_texture(rng), float(rng.uniform(2.0, 6.0)))


def _random_texture(rng: np.random.Generator) -> Texture:
    waves = np.stack(
        [
            rng.uniform(-4, 4, 4),
            rng.uniform(-4, 4, 4),
            rng.uniform(0, 2 * math.pi, 4),
            rng.uniform(-3, 3, 4),
        ],
        axis=1,
    )
    red, green, blue = rng.uniform(50, 120, 3)
    return Texture((red, green, blue), waves, rng.uniform(2, 9, (4, 3)))


def _random_actor(
    rng: np.random.Generator,
    acting: bool,
    y: float,
    start: float,
    length: float,
    lead: float,
    tail: float,
    motion: str | None = None,
) -> Actor:
    motion = motion or str(rng.choice(ACTIONS if acting else DISTRACTORS))
    turning = motion.startswith("Turn")
    shape = str(rng.choice(("bar", "triangle") if turning else ("disc", "square", "triangle")))
    sliding = motion.startswith("Slide")
    low, high = EXTENTS[motion.removesuffix("Right").removesuffix("Left")]
    colour = rng.uniform(60, 255, 3)
    colour[rng.integers(3)] = 255.0
    return Actor(
        motion=motion,
        shape=shape,
        colour=(float(colour[0]), float(colour[1]), float(colour[2])),
        x=float(rng.uniform(-0.05, 0.05) if sliding else rng.uniform(-0.3, 0.3)),
        y=y + float(rng.uniform(-0.06, 0.06)),
        size=float(rng.uniform(0.11, 0.16) if not sliding else rng.uniform(0.08, 0.13)),
        angle=float(rng.uniform(0, 2 * math.pi)) if turning else 0.0,
        extent=float(rng.uniform(low, high)),
        start=start,
        end=start + length,
        lead=lead,
        tail=tail,
        pause=float(rng.uniform(0.15, 0.3))
        if acting and length > 2 and rng.random() < 0.3
        else 0.0,
    )


def action_map(scene: Scene, times: NDArray[np.float64], grid: int) -> NDArray[np.float32]:
    """Return the actions in each cell: multi-hot [N, grid, grid, K] over the central square."""
    found = np.zeros((len(times), grid, grid, len(ACTIONS)), np.float32)
    centres = (np.arange(grid) + 0.5) / grid - 0.5
    for actor in scene.actors:
        if actor.motion not in ACTIONS:
            continue
        x, y, size, _, _ = (values[:, None] for values in _pose(actor, times))
        reach = size + 0.5 / grid
        columns, rows = abs(centres - x) < reach, abs(centres - y) < reach
        acting = ((times >= actor.start) & (times <= actor.end))[:, None, None]
        covered = acting & rows[:, :, None] & columns[:, None, :]
        found[..., ACTIONS.index(actor.motion)] += covered
    return found.clip(max=1)


def _progress(actor: Actor, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of the motion done at each time, 0 to 1; symmetric, so reversal is exact."""
    u = _elapsed(actor, times)
    if not actor.pause:
        return _ease(u)
    stroke = 0.5 * (1 - actor.pause)
    first, second = np.clip(u / stroke, 0, 1), np.clip(1 - (1 - u) / stroke, 0, 1)
    return 0.5 * (_ease(first) + _ease(second))


def _elapsed(actor: Actor, times: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip((times - actor.start) / (actor.end - actor.start), 0, 1)


def _ease(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return eased progress: half linear, half smoothstep, so the ends are slow but visible."""
    return 0.5 * u + 0.5 * u * u * (3 - 2 * u)


def _pose(actor: Actor, times: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Return x, y, size, angle, brightness of the actor at each time."""
    done = _progress(actor, times)
    if actor.motion in ACTIONS[1::2]:
        done = 1 - done
    still = np.zeros_like(times)
    x, y, size, angle, brightness = (
        still + value for value in (actor.x, actor.y, actor.size, actor.angle, 1.0)
    )
    # Whole waves that begin and end at rest: the same in both directions of time.
    beats = max(1, round(actor.end - actor.start))
    wave = np.sin(math.pi * beats * _elapsed(actor, times)) ** 2
    match actor.motion:
        case "SlideRight" | "SlideLeft":
            x = x + actor.extent * (done - 0.5)
        case "Grow" | "Shrink":
            size = size * (1 - actor.extent + 2 * actor.extent * done)
        case "TurnRight" | "TurnLeft":
            angle = angle + actor.extent * (done - 0.5)
        case "bob":
            y = y + actor.extent * wave
        case "blink":
            brightness = brightness - actor.extent * wave
    return x, y, size, angle, brightness


def _distance(
    shape: str, u: NDArray[np.float32], v: NDArray[np.float32], size: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the signed distance (short sides) of points (u, v) to the border of the shape."""
    match shape:
        case "disc":
            return np.sqrt(u * u + v * v) - size
        case "square":
            return np.maximum(np.abs(u), np.abs(v)) - 0.9 * size
        case "bar":
            return np.maximum(np.abs(u) - 1.35 * size, np.abs(v) - 0.42 * size)
    return np.maximum(np.maximum(0.866 * u - 0.5 * v, -0.866 * u - 0.5 * v), v) - 0.6 * size


def render_scene(
    scene: Scene, times: NDArray[np.float64], height: int, width: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Return the scene at the given times (s), uint8 [N, height, width, 3], with noise of `rng`."""
    short = min(height, width)
    ys = ((np.arange(height) + 0.5 - height / 2) / short).astype(np.float32)
    xs = ((np.arange(width) + 0.5 - width / 2) / short).astype(np.float32)
    frames = _draw_background(scene.texture, times, ys, xs)
    for actor in scene.actors:
        visible = np.flatnonzero(
            (times >= actor.start - actor.lead) & (times <= actor.end + actor.tail)
        )
        if len(visible):
            _draw_actor(frames, visible, actor, times[visible], ys, xs, short)
    noise = rng.standard_normal(frames.shape[:3], dtype=np.float32) * np.float32(scene.noise)
    frames += noise[..., None]
    return np.clip(frames, 0, 255, out=frames).astype(np.uint8)


def _draw_background(
    texture: Texture, times: NDArray[np.float64], ys: NDArray[np.float32], xs: NDArray[np.float32]
) -> NDArray[np.float32]:
    frames = np.empty((len(times), len(ys), len(xs), 3), np.float32)
    frames[:] = np.asarray(texture.base, np.float32)
    for (fx, fy, phase, drift), tint in zip(texture.waves, texture.tint, strict=True):
        # sin(a + b) from the factors of columns and rows: no sine per pixel.
        along = (2 * math.pi * fx * xs[None] + (phase + drift * times)[:, None]).astype(np.float32)
        down = (2 * math.pi * fy * ys).astype(np.float32)
        wave = (
            np.sin(along)[:, None, :] * np.cos(down)[None, :, None]
            + np.cos(along)[:, None, :] * np.sin(down)[None, :, None]
        )
        frames += wave[..., None] * tint.astype(np.float32)
    return frames


def _draw_actor(
    frames: NDArray[np.float32],
    which: NDArray[np.intp],
    actor: Actor,
    times: NDArray[np.float64],
    ys: NDArray[np.float32],
    xs: NDArray[np.float32],
    short: int,
) -> None:
    x, y, size, angle, brightness = (
        values.astype(np.float32)[:, None, None] for values in _pose(actor, times)
    )
    # Only the rows and columns that the shape can touch.
    reach = float(size.max()) * 1.5 + 1.5 / short
    rows = slice(*np.searchsorted(ys, (float(y.min()) - reach, float(y.max()) + reach)))
    columns = slice(*np.searchsorted(xs, (float(x.min()) - reach, float(x.max()) + reach)))
    dx, dy = xs[columns][None, None] - x, ys[rows][None, :, None] - y
    u = dx * np.cos(angle) + dy * np.sin(angle)
    v = dy * np.cos(angle) - dx * np.sin(angle)
    cover = np.clip(0.5 - _distance(actor.shape, u, v, size) * short, 0, 1)[..., None]
    colour = np.asarray(actor.colour, np.float32) * brightness[..., None]
    region = frames[which[0] : which[-1] + 1, rows, columns]
    region += cover * (colour - region)
