"""The units of time of all networks here: frames of a clip and of a tubelet."""

CLIP_FRAMES = 16
TUBELET = 2
CLIP_STEPS = CLIP_FRAMES // TUBELET
