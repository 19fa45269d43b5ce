"""Before anybody is blamed: does each model compute the same twice, without hooks too, and in the same mode?"""

from qtrace.selfcheck.check import FirstPass, SelfCheck, self_check

__all__ = ["FirstPass", "SelfCheck", "self_check"]
