"""Expressions for the words that tell why a module is wrong; a case demands them of the findings that name it.

They follow from what the case changes, and allow for synonyms. None may be found in the path of a module: naming the
place is not telling the reason (`tests/bench/test_fault_bench.py`).
"""

from __future__ import annotations

WEIGHT = r"\bweight\b"
BIAS = r"\bbias\b"
STATISTICS = r"\brunning_(mean|var)\b"
# A part of a tensor: it is not wrong as a whole.
PART = r"\b(rows?|columns?|channels?|slices?|entry|entries|elements?)\b|\b(axis|dim) ?\d|\b(weight|bias)\["

# How one tensor differs from another. \xd7 is the multiplication sign, \u2212 the minus sign.
NEGATED = r"\bsigns?\b|negat|(times|factor|factor of|\xd7) ?[-\u2212]1\b|[-\u2212]1(\.0+)? ?(times|\xd7|x\b)"
TWICE = r"\btwice\b|doubl|\b2(\.0+)? ?(times|\xd7|x\b)|(times|\xd7) ?2\b|\bfactor\b"
HALVED = r"\bhalf\b|halv|\b0\.50*\b|\bfactor\b"
ZERO = r"(?<!non-)\bzero(s|ed)?\b(?![- _]point)|\b(all|is|are|of|only|just) 0\b|\b0 everywhere"
TRANSPOSED = r"transpos"
ORDER = r"\border\b|\breorder|permut|shift|\broll|swap|exchang|revers|mirror|flip|moved|displac"
EXCHANGED = r"swap|exchang|changed places|each other|\bequals?\b|same as|\b(that|those) of\b|belongs? to"
ROUNDED = r"float16\b|\b[bf][fp]?16\b|half precision|\bround"

TIED = r"\b(un)?ti(e|es|ed)\b|\bshar(es?|ing)\b|\bshared (with|by|between|weight)|\b(not|longer) shared"
NON_FINITE = r"\bnans?\b|\binf(inity|inite|inities)?\b|non-?finite|not finite|overflow"
HALF_OVERFLOWS = rf"{NON_FINITE}|\bfloat16\b|half precision"
MISSING = r"\bnone\b(?! of)|not (passed|handed|given)|\bmissing\b|\babsent\b|\bomit|\black(s|ing)?\b"
ANOTHER_SHAPE = r"\bshapes?\b|\bsizes?\b"
# A mask of one batch row, as a shape [1, heads, queries, keys].
ONE_ROW_MASK = rf"{ANOTHER_SHAPE}|[\[(]1(, ?\d+){{3}}[\])]"

# Attributes, and classes of modules that stand in the place of another.
EPS = r"\beps\b|epsilon"
SCALING = r"\bscal(e|ing)\b"
TRAINING = r"\btrain(ing|s)?\b|\bmode\b"
TANH = r"\btanh\b|gelutanh|\bapproximate\b"
EXACT_GELU = r"\bgelu\b|\berf\b|\bapproximate\b"

# A quantizer's faults.
CLIPS = r"clip|satur|clamp|\bcut\b|too (small|narrow)|(out|outside|beyond)( of)?( the| its)? (range|grid)"
COARSE = r"coarse|\bwider?\b|too (large|big)|\b(few|fewer|\d+)[- ](levels?|steps?|bits?)\b|resolution|per[- ]tensor"
SCALES_AXIS = r"\bscales?\b.*\baxis\b|\baxis\b.*\bscales?\b|transpos|\bper (input|column)"
UNCALIBRATED = r"(never|not|un)[- ]?(been )?calibrated|never (set|observed)|uninitiali[sz]ed|initial value"


def all_of(*parts: str) -> str:
    """Return an expression that is found in a text in which each of `parts` is found, in any order."""
    return "".join(f"(?=(?s:.*)(?:{part}))" for part in parts)


def times(factor: str) -> str:
    """Return an expression for "`factor` times as large"; `factor` is a decimal fraction."""
    return rf"\b{factor.replace('.', '[.]')}0*\b|\bfactor\b"


ROW_NEGATED = all_of(WEIGHT, PART, NEGATED)
ROW_ZERO = all_of(WEIGHT, PART, ZERO)
ROW_SCALED = all_of(WEIGHT, PART, times("1.5"))
BIAS_ZERO = all_of(BIAS, ZERO)
WEIGHT_CLIPS = all_of(r"\bweight", CLIPS)
INPUT_CLIPS = all_of(r"\binput", CLIPS)

# The reasons of faults of one kind, where a case says no other.
USUAL_REASONS = {"dtype": HALF_OVERFLOWS, "mode": TRAINING, "tie": TIED}
