"""A file of text, compressed or not, to its lines; an error names the file and the line.

The first bytes say how a file is compressed; its name does not matter.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sftpipe.data.encoding_guess import SAMPLE_BYTES, Guess, guess_encodings, is_mostly_utf8
from sftpipe.data.stored import RowToStore, row_of
from sftpipe.errors import DataError, Problem, override

_CHUNK_BYTES = 2**16
_TAR = slice(257, 262)  # where a tar archive says that it is one
_UTF8 = ("utf-8", "utf-8-sig")


@dataclass(frozen=True)
class TextFile:
    """A file, and how its bytes become text.

    encoding: any text encoding that Python knows.
    """

    path: Path
    encoding: str = "utf-8"

    @contextlib.contextmanager
    def lines(self) -> Iterator[Iterator[str]]:
        """A block with the lines of the file, each with its line feed, without a byte order mark.

        Raises:
            DataError: the file cannot be opened, is damaged, or is not of this encoding.
        """
        try:
            with _open(self.path) as opened:
                self._check_kind(opened.peek(_TAR.stop))
                yield self._decoded(opened)
        except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, OSError) as error:
            found = f"the compressed file is damaged or cut off ({error})"
            fix = "fetch or make the file again"
            if isinstance(error, OSError) and error.errno is not None:  # of the disk
                found = f"the file cannot be read: {error.strerror}"
                fix = "look at its permissions and at the disk"
            raise self.problem(found, fix) from None

    def problem(
        self, found: str, fix: str, allowed: str = "", line: int = 0, row: int | None = None
    ) -> DataError:
        """The error of the file, of one of its lines (from 1) or of one of its rows (from 0)."""
        where = f"dataset.data_files: {self.path}" + (f", line {line}" if line else "")
        where += "" if row is None else f", row {row}"
        return DataError(Problem(where, found, allowed=allowed, fix=fix))

    def _check_kind(self, begin: bytes) -> None:
        if begin.startswith(b"PAR1"):
            raise self.problem("a Parquet file", "`dataset=parquet`")
        if begin[_TAR] == b"ustar":
            raise self.problem("a tar archive", "unpack it, and name the files", "one file")

    def _decoded(self, opened: IO[bytes]) -> Iterator[str]:
        name = codecs.lookup(self.encoding).name
        lines = self._of_utf8(opened) if name in _UTF8 else self._of_other(opened)
        for number, line in enumerate(lines, start=1):
            yield line.removeprefix("\ufeff") if number == 1 else line

    def _of_utf8(self, opened: IO[bytes]) -> Iterator[str]:
        for number, line in enumerate(opened, start=1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                found = f"byte {line[error.start]:#04x} is no UTF-8"
                raise self._wrong_encoding(found, number, line) from None
            if number == 1 and line.count(0) > len(line) // 8:
                # English in UTF-16 without a mark is UTF-8, too
                found = f"{line.count(0)} of {len(line)} bytes are zero"
                raise self._wrong_encoding(found, number, line)
            yield text

    def _of_other(self, opened: IO[bytes]) -> Iterator[str]:
        """Lines of an encoding in which the byte of a line feed may be half a character."""
        decoder = codecs.getincrementaldecoder(self.encoding)()
        pieces: list[str] = []  # of the line that is not yet whole
        number, at_end = 0, False
        while not at_end:
            chunk = opened.read(_CHUNK_BYTES)
            at_end = not chunk
            state = decoder.getstate()
            try:
                text = decoder.decode(chunk, final=at_end)
            except UnicodeDecodeError as error:
                decoder.setstate(state)
                line = number + _up_to_the_fault(decoder, chunk).count("\n") + 1
                found = f"byte {error.object[error.start]:#04x} is no {self.encoding}"
                fix = "name the encoding of the file: dataset.encoding=..."
                raise self.problem(found, fix, line=line) from None
            *ends, begin = text.split("\n")
            for end in ends:
                number += 1
                yield "".join(pieces) + end + "\n"
                pieces = []
            pieces.append(begin)
        if last := "".join(pieces):
            yield last

    def _wrong_encoding(self, found: str, number: int, line: bytes) -> DataError:
        """The error of bytes that are no UTF-8: what the file may be instead, never used."""
        with _open(self.path) as opened:
            sample = opened.read(SAMPLE_BYTES)
        guesses = [] if is_mostly_utf8(sample + line) else guess_encodings(sample, line)
        if not guesses:
            fix = "fix the line" if is_mostly_utf8(sample + line) else "save the file as UTF-8"
            return self.problem(found, fix, line=number)
        return self.problem(_told(found, guesses), _typed(guesses), line=number)


def _told(found: str, guesses: list[Guess]) -> str:
    if len(guesses) == 1:
        return f"{found}; the file reads as {guesses[0].encoding}: {guesses[0].line!r}"
    readings = [f"as {one.encoding} the line is {one.line!r}" for one in guesses]
    return f"{found}; {', '.join(readings)}"


def _typed(guesses: list[Guess]) -> str:
    return ", or ".join(override("dataset.encoding", one.encoding) for one in guesses)


def _up_to_the_fault(decoder: codecs.IncrementalDecoder, chunk: bytes) -> str:
    text = ""
    with contextlib.suppress(UnicodeDecodeError):
        for at in range(len(chunk)):
            text += decoder.decode(chunk[at : at + 1])
    return text


def text_rows(file: TextFile, sample_by: str) -> Iterator[RowToStore]:
    """Lines, paragraphs (between empty lines) or the whole file; blank ones are no rows."""
    with file.lines() as lines:
        begins, held = 1, ""
        for number, raw in enumerate(lines, start=1):
            line = raw.replace("\r\n", "\n")
            if not held:
                begins = number
            if sample_by == "line" or (sample_by == "paragraph" and not line.strip()):
                text, held = (held + line if sample_by == "line" else held), ""
                if text.strip():
                    yield _text_row(text.rstrip("\n"), file, begins)
            else:
                held += line
        if held.strip():
            yield _text_row(held if sample_by == "document" else held.rstrip("\n"), file, begins)


def _text_row(text: str, file: TextFile, line: int) -> RowToStore:
    return row_of({"text": text}, f"{file.path.name}, line {line}")


# --- compression ----------------------------------------------------------------------------------


def _open_zstd(file: Path) -> Any:
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(file)), "zstd"))


def _open_zip(file: Path) -> IO[bytes]:
    archive = zipfile.ZipFile(file)
    held = [entry for entry in archive.infolist() if not entry.is_dir()]
    if any(entry.filename == "xl/workbook.xml" for entry in held):
        raise TextFile(file).problem("an Excel workbook", "save its sheet as CSV (UTF-8)")
    if len(held) != 1:
        names = ", ".join(entry.filename for entry in held[:5])
        raise TextFile(file).problem(
            f"{len(held)} files in one archive: {names}",
            "unpack it, and name the files",
            allowed="one file",
        )
    if held[0].flag_bits & 1:
        raise TextFile(file).problem("the archive wants a password", "unpack it, and name the file")
    return archive.open(held[0])


_MAGIC: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"PK\x03\x04": _open_zip,
    b"PK\x05\x06": _open_zip,  # without a file in it
    b"\x28\xb5\x2f\xfd": _open_zstd,
}


def _open(file: Path) -> contextlib.AbstractContextManager[Any]:
    with file.open("rb") as raw:
        begins = raw.read(6)
    opened = next((way for magic, way in _MAGIC.items() if begins.startswith(magic)), None)
    return file.open("rb") if opened is None else opened(file)
