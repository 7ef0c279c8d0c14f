"""The files that detection leaves, each only if it is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.atomic import write_text
from evaluate.annotations import Detection
from evaluate.files.annotation_tools import ToolFiles
from evaluate.files.predictions import write_predictions
from evaluate.files.subtitles import format_csv, format_srt, format_vtt
from evaluate.files.timeline import PageVideo, embed_video, link_video, render_page


@dataclass(frozen=True)
class Outputs:
    """Files to write: of all videos together, and folders of one file a video.

    Args:
        embed: put the videos into the page, too.
        tools: files of annotation tools; `clips`: folder of the segments as videos.
    """

    json: Path | None
    csv: Path | None
    srt: Path | None
    vtt: Path | None
    page: Path | None
    embed: bool
    tools: ToolFiles
    clips: Path | None = None

    def make_folders(self) -> None:
        """Make the folders now, not after hours of detection."""
        for file in filter(None, (self.json, self.csv, self.page)):
            file.parent.mkdir(parents=True, exist_ok=True)
        for folder in filter(None, (self.srt, self.vtt, self.clips)):
            folder.mkdir(parents=True, exist_ok=True)
        self.tools.make_folders()

    def page_source(self, video: Path) -> str:
        """Return where the page finds a video: its link or its content; empty without a page."""
        if not self.page:
            return ""
        return embed_video(video) if self.embed else link_video(video, self.page)

    def write_subtitles(self, name: str, detections: Sequence[Detection]) -> None:
        """Write the subtitles of one video."""
        if self.srt:
            write_text(self.srt / f"{name}.srt", format_srt(detections))
        if self.vtt:
            write_text(self.vtt / f"{name}.vtt", format_vtt(detections))

    def write_all(
        self,
        found: Mapping[str, Sequence[Detection]],
        pages: Sequence[PageVideo],
        classes: Sequence[str],
        title: str,
        threshold: float,
    ) -> None:
        """Write the files that hold all videos so far; without a video there is nothing to write.

        Args:
            found: detections by the video's name, best first; `pages`: the page's entries.
            title: of the page; `threshold`: the score that its slider begins with.
        """
        if not found:
            return
        if self.json:
            write_predictions(self.json, found)
        if self.csv:
            write_text(self.csv, format_csv(found))
        if self.page:
            write_text(self.page, render_page(pages, classes, title, threshold))
