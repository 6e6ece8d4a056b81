"""Muon on a mesh: each matrix is orthogonalized once, by one device.

Five nouns carry this folder:

kind
    What matrices must agree on to travel together: layout, shape, dtype, and how they lie before and after the update.
    ``kinds.py``.
owner
    The device that orthogonalizes a matrix. The costliest matrices are given away first, one to each device before any
    gets a second, the idlest first. ``owners.py``.
plan
    Kinds, owners and what they cost. It is static, printable, and made of shapes and shardings alone. ``plan.py``.
send
    Every device gives each owner its pieces of the owner's matrices: one all-to-all, or nothing at all where the owner
    holds the whole already. ``exchange.py``.
return
    Every owner gives each device its pieces of the results: one all-to-all, and an all-gather where several devices
    hold the same piece. ``exchange.py``.

Matrices travel in stacks, ``(owners, rows, width)``. A stack holds one kind, of which every owner has equally many.
What is left over of several kinds shares a mixed stack, in which each owner runs the branch for the kinds it has and
owners without a matrix skip the products. Large models take several batches of stacks, one after another, to bound
their memory.

``shardings.py`` says how arrays lie, ``state.py`` where the optimizer's state lies, ``checks.py`` what is refused.
"""
