"""Muon on a mesh: each matrix is orthogonalized once, by one device.

The words of this folder, in the order in which an update meets them:

- *placement*: the mesh, how arrays come to an update (``there``), and how they leave it (``back``). It is made from
  shardings, from types or from a plan (``placement.py``, ``typed.py``), of tuples of mesh axes (``dims.py``).
- *kind*: matrices that are the same to an owner: they agree in layout, shape, wire dtype, pieces, pool and
  orthogonalizer (``kinds.py``). The *wire dtype* is that of the products, where it is narrower and holds as large and
  small numbers.
- *piece*: the part of a matrix that one device holds. Along mesh axes that do not divide a matrix its pieces have
  *copies* along the other axes of the pool.
- *pool*: the mesh axes along which owners differ. Axes that divide a stack of experts or layers are not among them:
  its matrices stay with the devices of their part.
- *owner*: the device that orthogonalizes a matrix. Pools of few axes choose first, then the costliest kinds, in rounds
  of one matrix for each owner of the pool (``owners.py``).
- *stack*: matrices of one kind that travel together, in one send and one return (``stacks.py``); if mixed, of kinds
  that agree in pool, wire dtype and dividing axes. *Held* says how many of each kind
  an owner has in it. All owners hold equally many, or the stack is *mixed*: it has what is left over of its kinds, and
  each owner runs the branch for what it holds.
- *turn*: one matrix of each owner. Zeros may fill the last turn of a kind, if no device works longer for it.
- *way*: how a stack travels to its owners, or back, in an array ``(owners, rows, width)``.
- *row*: a piece lies in rows of the way's width, which its kinds share (``packing.py``).
- *batch*: stacks that are in memory at once. Large models take several, one after another.
- *send*: every device gives each owner its pieces of the owner's matrices, in one all-to-all. Where the owner holds all
  pieces, nothing travels (``exchange.py``).
- *return*: every owner gives each device its pieces of the results, in one all-to-all. Where devices hold copies, one
  all-gather follows.
- *plan*: all of the above for one tree of parameters, with its cost: static and printable (``plan.py``, made by
  ``make_plan.py``). ``given.py`` finds the plan that an update follows.

``checks.py`` has what is refused. Where the optimizer's state lies is in ``muon_optax/_state``.
"""
