"""From records to a report: what is read, what may stand in one table, and how it is shown.

``inputs`` finds and reads what a report is made of, ``groups`` keeps apart what must not be mixed,
``summary`` computes the numbers, the ``*_section`` modules make blocks of a ``document``, and
``html`` and ``markdown`` write it. ``figures`` are SVG without any package.
"""
