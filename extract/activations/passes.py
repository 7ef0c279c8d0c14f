"""One pass of a backbone over one span: what a stored activation is the result of.

The source of this file is part of every fingerprint: what does not compute belongs elsewhere.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from extract.activations.inputs import Piece
from extract.backbone.backbone import PixelBackbone
from extract.backbone.precision import autocast
from extract.backbone.streaming import StreamingPass
from extract.sampling.spans import Span
from extract.settings.backbone import Cut, Precision

StoreRows = Callable[[Cut, Tensor, int], None]
"""Takes rows of the activation at a cut, [n, C] or [n, P, C], and which row is the first."""


class Pass:
    """One pass over one span, whose inputs come in pieces and whose activations are stored.

    Args:
        backbone: in eval mode, on its device.
        start: the cut whose activation the pieces are; None for pixels.
        cuts: in the order of a pass.
        store: is given what is finished.

    Attributes:
        backwards: activations come from the end of the span to its beginning.

    Raises:
        ValueError: the backbone is in training mode.
    """

    def __init__(
        self,
        backbone: PixelBackbone,
        precision: Precision,
        span: Span,
        start: Cut | None,
        cuts: Sequence[Cut],
        store: StoreRows,
    ) -> None:
        self.backbone, self.precision, self.store = backbone, precision, store
        self.span, self.start, self.cuts = span, start, cuts
        video = span.kind == "video"
        self.backwards = video and start is None and span.direction == "reversed"
        if backbone.training:
            raise ValueError("activations are taken in eval mode; call .eval() first")
        self._front = StreamingPass(backbone, cuts, start, self.backwards) if video else None
        self._row = dict.fromkeys(cuts, span.rows if self.backwards else 0)

    def must_restart(self, piece: Piece) -> bool:
        """Return whether pixels come in place of the rest of a stored activation."""
        return piece.window is not None and self.start is not None

    @torch.no_grad()
    def push(self, piece: Piece) -> None:
        """Run the next piece as far as it goes; store what that finishes."""
        device = self.backbone.mean.device
        inputs = piece.to(device).arranged(self.span).unsqueeze(0)
        with autocast(self.precision, device):
            if self._front is not None:
                self._store(self._front.push(inputs))
                if piece.last:
                    self._store(self._front.finish())
                return
            x = inputs
            at: Cut | None = self.start
            for cut in self.cuts:
                x, at = self.backbone(x, at, cut), cut
                self._store({cut: x})

    def _store(self, found: dict[Cut, Tensor]) -> None:
        for cut, activation in found.items():
            (rows,) = activation.mT if cut == "features" else activation
            if self.backwards:
                self._row[cut] -= len(rows)
            self.store(cut, rows, self._row[cut])
            if not self.backwards:
                self._row[cut] += len(rows)
