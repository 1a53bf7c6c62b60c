"""Finished rows to a report, or an error.

Each module, with what goes in and what comes out:

    report.py      encoded rows, packed rows, config -> Preflight, or a DataError with every problem
    checks.py      Findings                          -> Problems; to add a check, see there
    facts.py       Part                              -> RowFacts: numbers about each row
    parity.py      Part, Encoder                     -> Comparison with the prompts of generation
    duplicates.py  Parts, RowFacts                   -> Duplicates
    remarks.py     Part                              -> words for what is to be said of used rows
    columns.py     a split of preflight.json         -> its cells in the tables of the preflight
    preview.py     rows                              -> a coloured text, preview.html

The digest of cached rows leaves this folder out: a reworded report keeps them valid.
"""
