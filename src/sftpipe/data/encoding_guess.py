"""What encoding may a file have that is no UTF-8? For messages: a guess is named and never used.

charset-normalizer is made for pages of text and is wrong about most files of a few short lines in
Korean, Japanese or Chinese, whose encodings share all their bytes. They are told apart by their
most frequent characters first.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

SAMPLE_BYTES = 2**16  # of the beginning of a file
_MOST = 3  # guesses that a message names
_SHOWN = 40  # characters of a line
_SURE = 0.3  # least share of frequent characters
_FEW = 4  # bytes that tell nothing
_NEAR = 0.5  # a second guess with this share of the first one's score is named too

_BOMS = {  # the longer ones first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_HANGUL = (
    "이다는을의에가하고지기로리사은도를서어한나자시아대인그라해일수있것니습요게들만보정전부제면주구"
    "성여오장상조해원과공으동스비세국선문관내러더지안모용소방실유물무경우연생마적신위외당터거된트발"
    "할말와까되생각계통간입분없개회행미려재영야때등음결작중학강알년법번식진심치달러차천최또변건올"
)
_SIMPLIFIED = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发"
    "后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前"
    "开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业外将两高间由问很最"
    "重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次度门"
    "任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数"
    "安少报才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科"
    "司五基眼书非则听白却界达光放强即像难且权思王象完设式色路记南品住告类求据程北边死张该交规万取"
    "请写答案京首都城"
)
_TRADITIONAL = (
    "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年過發"
    "後作裡用道行所然家種事成方多經麼去法學如都同現當沒動面起看定天分還進好小部其些主樣理心她本前"
    "開但因只從想實日者意無力它與長把機十民第公此已工使情明性知全三又關點正業外將兩高間由問很最重"
    "並物手應向頭文體政美相見被利什二等產或新己制身果加西月話合回特代內信表化老給世位次度門任常先"
    "請寫答案臺灣北首都城市"
)
_KANA = "".join(map(chr, [*range(0x3041, 0x3097), *range(0x30A1, 0x30FB), 0x30FC]))
_KANJI = "日本人大一年出中会国上生分行東京私何語時間今見学校水月気思言手前後自方者事地名"
_LATIN = "àâäáãåæçéèêëíìîïñóòôöõøœúùûüýßÀÂÄÁÅÆÇÉÈÊÍÎÑÓÔÖØŒÚÛÜ¿¡«»“”‘’„–—…•€£°§©®™·º½"
_FULL_WIDTH = "、。「」『』（）！？，：；《》【】・…"
_FREQUENT = {
    "cp949": _HANGUL,
    "shift_jis": _KANA + _KANJI + _FULL_WIDTH,
    "cp932": _KANA + _KANJI + _FULL_WIDTH,
    "euc_jp": _KANA + _KANJI + _FULL_WIDTH,
    "gb18030": _SIMPLIFIED + _FULL_WIDTH,
    "big5": _TRADITIONAL + _FULL_WIDTH,
    "cp1252": _LATIN,
    "cp1251": "",  # told by its words
    "koi8_r": "",
    "utf-16-le": _HANGUL + _KANA + _KANJI + _SIMPLIFIED + _TRADITIONAL + _FULL_WIDTH + _LATIN,
    "utf-16-be": _HANGUL + _KANA + _KANJI + _SIMPLIFIED + _TRADITIONAL + _FULL_WIDTH + _LATIN,
}
_CONTAINED = {"cp932": "shift_jis"}  # the larger one is named only where the smaller one fails


@dataclass(frozen=True)
class Guess:
    """An encoding, and how a line reads in it."""

    encoding: str
    line: str


def is_mostly_utf8(sample: bytes) -> bool:
    """True for UTF-8 of which single bytes are damaged."""
    text = sample.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    return sum(not one.isascii() for one in text) - bad > bad


def guess_encodings(begin: bytes, line: bytes) -> list[Guess]:
    """The likeliest encodings, best first; one where it is clear, [] where nothing reads well.

    Args:
        begin: the first bytes of the file.
        line: the line that is no UTF-8.
    """
    for mark, name in _BOMS.items():
        if begin.startswith(mark):
            return [Guess(name, _shown(_decoded(begin, name) or ""))]
    wide = begin.count(0) > len(begin) // 50  # the zeros of ASCII in UTF-16
    sample = begin if wide or line in begin else begin[: begin.rfind(b"\n") + 1] + line
    readings = {
        name: text
        for name in _FREQUENT
        if name.startswith("utf") == wide and (text := _decoded(sample, name)) is not None
    }
    scores = {name: _score(text, name) for name, text in readings.items()}
    for larger, smaller in _CONTAINED.items():
        if smaller in scores:
            scores.pop(larger, None)
    ranked = sorted(scores, key=lambda name: -scores[name])
    best = scores[ranked[0]] if ranked else 0.0
    chosen = [name for name in ranked if scores[name] >= max(_NEAR * best, 0.01)]
    if best < _SURE and sum(byte > 127 for byte in sample) < _FEW:
        return []
    if best < _SURE:
        chosen = list(dict.fromkeys([*chosen, *_of_charset_normalizer(sample, readings)]))
    return [Guess(name, _shown(readings[name])) for name in chosen[:_MOST]]


def _score(text: str, encoding: str) -> float:
    """Share of frequent ones among the characters that tell the encoding."""
    frequent = set(_FREQUENT[encoding])
    if encoding == "cp1252":  # letters with accents stand alone, or two together
        runs = re.findall(r"[^\x00-\x7f]+", text)
        letters = "".join(runs)
        good = sum(one in frequent for run in runs if len(run) < 3 for one in run)
        return good / max(1, len(letters))
    if encoding in ("cp1251", "koi8_r"):  # which read each other with upper and lower case swapped
        words = re.findall(r"[^\W\d_]+", text)
        good = sum(len(word) for word in words if re.fullmatch("[А-ЯЁ]?[а-яё]{2,}", word))
        return good / max(1, sum(not one.isascii() for one in text))
    if encoding.startswith("utf"):  # the other byte order gives characters of all the world
        return sum(one.isascii() or one in frequent for one in text) / max(1, len(text))
    others = [one for one in text if not one.isascii()]
    score = float(sum(one in frequent for one in others))
    if encoding == "cp949":  # each syllable is a letter of Korean; half of Chinese reads so too
        score += 0.4 * sum("가" <= one <= "힣" and one not in frequent for one in others)
    return score / max(1, len(others))


def _of_charset_normalizer(sample: bytes, readings: dict[str, str]) -> list[str]:
    """Its best guess, whose reading is put beside the others."""
    from charset_normalizer import from_bytes

    match = from_bytes(sample).best()
    if match is None or match.encoding.startswith(("utf", "ascii")):
        return []
    text = _decoded(sample, match.encoding)
    if text is None:
        return []
    readings[match.encoding] = text
    return [match.encoding]


def _decoded(sample: bytes, encoding: str) -> str | None:
    """The text, or None where a byte is none of this encoding; a cut last character is none."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(sample).removeprefix("\ufeff")
    except UnicodeDecodeError:
        return None


def _shown(text: str) -> str:
    """The first line that is no ASCII."""
    lines = text.splitlines() or [""]
    line = next((one for one in lines if not one.isascii()), lines[0])
    begins = next((at for at, one in enumerate(line) if not one.isascii()), 0)
    start = max(0, begins - _SHOWN // 2) if len(line) > _SHOWN else 0
    return line[start : start + _SHOWN]
