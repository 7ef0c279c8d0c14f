"""ELAN's annotation files, `.eaf`.

https://www.mpi.nl/tools/elan/EAF_Annotation_Format_3.0_and_ELAN.pdf

The text of an annotation is its label, whatever tier it is on; one without text is named by its
tier. Annotations that only refer to others have no times of their own and are left out.
"""

from xml.etree.ElementTree import Element

from evaluate.datasets.fields import as_number
from evaluate.datasets.records import AnnotationSource, Dataset, Record
from evaluate.datasets.tools.addresses import file_of
from evaluate.datasets.tools.safe_xml import get_attribute

ROOT = "ANNOTATION_DOCUMENT"


def read_elan(root: Element, source: AnnotationSource, dataset: Dataset) -> None:
    """Add the video of a file: the first that it links, or the one called as the file is."""
    header = root.find("HEADER")
    units = "milliseconds" if header is None else header.get("TIME_UNITS", "milliseconds")
    if units != "milliseconds":
        raise ValueError(f"{source.path}: times in {units!r}; save the file in milliseconds.")
    linked = [] if header is None else header.findall("MEDIA_DESCRIPTOR")
    videos = [each for each in linked if not each.get("MIME_TYPE", "").startswith("audio")]
    if len(videos) > 1:
        dataset.warnings["further videos of ELAN files ignored"] += len(videos) - 1
    origin_s, given = 0.0, source.path.stem
    if videos:
        place = f"{source.path}: MEDIA_DESCRIPTOR"
        origin_s = as_number(videos[0].get("TIME_ORIGIN", "0"), "TIME_ORIGIN", place) / 1000
        address = videos[0].get("MEDIA_URL") or videos[0].get("RELATIVE_MEDIA_URL") or ""
        given = file_of(address) or source.path.stem
    else:
        dataset.warnings["ELAN files without a linked video, which is named as they are"] += 1
    name = dataset.name_of_file(given, f"{source.path}")
    content = {"subset": dataset.choose_subset(name, source), "annotations": []}
    record = Record(f"{source.path}: video {name!r}", content)
    dataset.whole_video(name, record)
    slots = {slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE") for slot in root.iter("TIME_SLOT")}
    for tier in root.findall("TIER"):
        for annotation in tier.findall("ANNOTATION/*"):
            with dataset.collect():
                _add(annotation, tier, slots, origin_s, record, source, dataset)


def _add(
    annotation: Element,
    tier: Element,
    slots: dict[str | None, str | None],
    origin_s: float,
    record: Record,
    source: AnnotationSource,
    dataset: Dataset,
) -> None:
    place = f"{source.path}: annotation {annotation.get('ANNOTATION_ID', '?')}"
    if annotation.tag != "ALIGNABLE_ANNOTATION":
        dataset.warnings["ELAN annotations that refer to others left out"] += 1
        return
    times = []
    for key in ("TIME_SLOT_REF1", "TIME_SLOT_REF2"):
        slot = get_attribute(annotation, key, place)
        if slot not in slots:
            raise ValueError(f"{place}: there is no time slot {slot!r}.")
        times.append(slots[slot])
    if None in times:
        dataset.warnings["ELAN annotations without times of their own left out"] += 1
        return
    start_s, end_s = (round(as_number(t, "time", place) / 1000 + origin_s, 6) for t in times)
    label = annotation.findtext("ANNOTATION_VALUE", "").strip()
    if not label:
        label = get_attribute(tier, "TIER_ID", place)
        dataset.warnings["ELAN annotations without a text named by their tier"] += 1
    record.add(label, start_s, end_s, place)
