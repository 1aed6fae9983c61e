"""The catalogue of bad inputs, a module for each area.

To add a kind, append a ``Case`` to ``CASES`` of the module of its area. To add an area, write a
module with a list ``CASES`` here and name it in ``AREAS``. Steps that several areas need are in
``steps``. ``Case.prepare`` runs in a folder of its own with the files that ``make_folder`` of
``tools/bad_inputs.py`` writes: a good configuration, sources, shards and a finished run.
"""

from bad_input_cases import config, graphs, runs, shards, sources, studies
from bad_input_cases.steps import Case

AREAS = (config, graphs, sources, shards, runs, studies)
CASES: list[Case] = [case for area in AREAS for case in area.CASES]
