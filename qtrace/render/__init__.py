"""Reports for people and programs: the terminal's sections, and one file a format of `--report`.

A renderer takes any `ReportData` and returns text or rich renderables; only `save` touches a disk, and only
where it is told to. No numbers are made here: what is shown is what the record holds.
"""

from qtrace.render.formats import check, save
from qtrace.render.notebook import to_html

__all__ = ["check", "save", "to_html"]
