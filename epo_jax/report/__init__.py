"""A report of runs as one HTML file: curves, evaluations, a reader of episodes, strategies, the machine.

    sources      what a path holds: a run, an evaluation, recorded traffic, or a file of conversations
    episodes     the display form of an episode, from its record
    rows         the same, from a row of a file of conversations
    sample       which episodes fit into the file
    curves, tables, selfplay, strategies, settings     the other sections
    page         the HTML file; its template, style and scripts are in assets/, the plotting library in vendor/
"""
