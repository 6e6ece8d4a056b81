"""Muon on a mesh: each matrix is orthogonalized once, by one device.

Five nouns carry this folder:

- *kind*: what matrices must agree on to travel together: layout, shape, dtype, and how they lie before and after the
  update (``kinds.py``).
- *owner*: the device that orthogonalizes a matrix. The costliest matrices are given away first, one to every device
  before any gets a second, the idlest device first (``owners.py``).
- *plan*: kinds, owners, and what they cost. Static, printable, made of shapes and shardings alone (``plan.py``).
- *send*: every device gives each owner its pieces of the owner's matrices, in one all-to-all; where the owner holds all
  pieces, nothing travels (``exchange.py``).
- *return*: every owner gives each device its pieces of the results, in one all-to-all; where several devices hold the
  same piece, one all-gather follows.

Matrices travel in stacks, ``(owners, rows, width)``. A stack holds one kind, equally many for each owner. What is left
over of several kinds shares a mixed stack: each owner runs the branch for the kinds that it has, and owners without a
matrix skip the products. Large models take several batches of stacks, one after another, which bounds their memory.

``shardings.py`` says how arrays lie, ``state.py`` where the optimizer's state lies, ``checks.py`` what is refused.
"""
