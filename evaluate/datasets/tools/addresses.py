"""Where tools say that a video is: a path, or a URL."""

from urllib.parse import parse_qs, unquote, urlsplit


def path_of(address: str) -> str:
    """Return the path of a video's address, of a URL without what is encoded."""
    try:
        parts = urlsplit(address)
        served = parse_qs(parts.query).get("d")
    except ValueError:
        return address
    if served:  # by Label Studio, from a local folder
        return served[0]
    # A single letter is a drive of Windows.
    if len(parts.scheme) > 1:
        return unquote(parts.path)
    return address


def file_of(address: str) -> str:
    """Return the name of the file that a video's address is of."""
    return path_of(address).replace("\\", "/").rpartition("/")[2]
