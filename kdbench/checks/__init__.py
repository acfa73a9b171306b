"""What can be wrong with a training before it begins: one file per group of checks.

    examine(case)               -> findings on the data, the tokenizers and the configs; no model is loaded
    rehearsed(case, rehearsal)  -> findings on the trainer's own batches, hidden states and first step
    vet(case)                   what every training does: warnings are logged, an error ends it

A check is a function from a `Case` to findings; it says nothing where nothing is wrong. One more check is
one more function in one of these files and one more entry in `running`. `kdbench doctor` shows them all.
"""
