"""Preparation of a data set for a study: source -> catalog -> split -> cache.

`find_pictures("photos")` reads, checks and splits a data set. `decode([64, 96], cache_dir=default_cache())`, called on
its result, decodes the pictures at these sizes (pixels) for training.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from data import DataError, NearDuplicates, Track, cache, catalog, no_track, sources
from data.cache import CacheHandle
from data.catalog import Catalog
from data.split import Split, split
from model.files import printable


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A data set that has been read and split, but not decoded yet."""

    name: str
    """Name of the source, which is also a study's default name."""
    citation: str
    """Origin of the pictures, in one line."""
    source: str
    """The `data` argument as given: a path or a name."""
    test_data: Path | None
    """The `test_data` argument as given."""
    parts: str | None = None
    """The `parts` argument as given."""
    follow_links: bool = False
    """The `follow_links` argument as given."""
    near_duplicates: NearDuplicates
    """The `near_duplicates` argument as given."""
    limit: int | None
    """The `limit` argument as given."""
    available: int
    """Number of pictures that the source offers; not less than the number in use."""
    catalog: Catalog
    """Every file with its verdict; `catalog.kept` are the pictures in use."""
    split: Split

    def decode(self, sizes: Iterable[int], *, cache_dir: Path, track: Track = no_track) -> CacheHandle:
        """Decode the pictures in use at each size (pixels) into the cache, except at sizes that are there already.

        Raises DataError if the cache cannot be written, or a picture has changed since it was checked.
        """
        return cache.build(self.catalog, self.split, sizes, cache_dir=cache_dir, track=track)


def find_pictures(
    data: str = "field-guide",
    *,
    test_data: Path | None = None,
    parts: str | None = None,
    follow_links: bool = False,
    near_duplicates: NearDuplicates = "group",
    limit: int | None = None,
    cache_dir: Path | None = None,
    track: Track = no_track,
) -> Pictures:
    """Read a data set, check each of its files, and split it into train, validation and test.

    `data` is "field-guide", "kaggle" or the path of a folder of class folders; `test_data`, an official test set, is
    another such folder. `parts` says which folders are the official parts, in the form "train=DIR,test=DIR", where the
    folders themselves do not tell (see `data.layout`). Links that lead out of the folder are read with `follow_links`.
    Near-duplicates are put into the same part of the split, or with "keep" split like different pictures. Up to `limit`
    pictures are used, all if it is None. Results of the checks are stored under `cache_dir`, by default
    `default_cache()`, so that only new and changed files are opened the next time.
    Raises DataError for a data set that cannot be used; its text says why and what to do. If every file was checked, it
    is an UnusableDataError, which has the catalog.
    """
    cache_dir = cache_dir or default_cache()
    source = sources.resolve(
        data,
        cache_dir=cache_dir,
        pictures=limit,
        test_data=test_data,
        parts=parts,
        follow_links=follow_links,
        track=track,
    )
    scanned = catalog.scan(source, near_duplicates=near_duplicates, cache_dir=cache_dir, track=track)
    with catalog.concerning(scanned):
        used = scanned.limited(limit)
        divided = split(used)
    return Pictures(
        name=source.name,
        citation=source.citation,
        source=data,
        test_data=test_data,
        parts=parts,
        follow_links=follow_links,
        near_duplicates=near_duplicates,
        limit=limit,
        available=max(source.available or 0, len(scanned.kept)),
        catalog=used,
        split=divided,
    )


def default_cache() -> Path:
    """Return the user's cache folder for this program. Raises DataError if the user has no home folder."""
    fix = "choose a folder for drawn and decoded pictures with --cache DIR"
    try:
        folder = user_cache_path("mushroom-study", appauthor=False)
    except RuntimeError as error:
        raise DataError(f"cannot find a cache folder ({printable(str(error))}): {fix}") from error
    if not folder.is_absolute():  # earlier versions of platformdirs return ~/.cache as it is
        raise DataError(f"cannot find a cache folder (no home folder for {printable(folder)}): {fix}")
    return folder


def identity(pictures: Pictures, handle: CacheHandle) -> str:
    """Return a text that identifies the pictures in use and their split; stored studies are compared by it."""
    return f"{len(pictures.catalog.kept)} pictures, fingerprint {handle.fingerprint}, split {handle.split}"
