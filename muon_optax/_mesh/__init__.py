"""Muon on a mesh: each matrix is orthogonalized once, by one device.

The words of this folder, in the order in which an update meets them:

- *placement*: the mesh, how arrays come to an update (``there``), and how they leave it (``back``). It is made from
  shardings, from types or from a plan (``placement.py``, ``typed.py``), of tuples of mesh axes (``dims.py``).
- *kind*: matrices that agree in layout, shape, wire dtype, pieces, pool and orthogonalizer, and so are the same to an
  owner (``kinds.py``). The *wire dtype* is that of the products, if it is narrower and has the range of the matrix's
  own.
- *piece*: the part of a matrix that one device holds. Along axes of the pool that do not divide a matrix, devices hold
  *copies* of its pieces.
- *pool*: the mesh axes along which owners differ. Axes that divide a stack of experts or layers are not among them,
  since its matrices stay with the devices of their part.
- *owner*: the device that orthogonalizes a matrix (``owners.py``).
- *stack*: matrices that travel together, in one send and one return (``stacks.py``). They are of one kind, and all
  owners hold equally many. A *mixed* stack has the rest of several kinds, and each owner runs the branch for the
  matrices it holds.
- *held*: how many matrices of each kind an owner has in a stack.
- *turn*: one matrix of each owner.
- *way*: how a stack travels to its owners, or back, in an array ``(owners, rows, width)``.
- *row*: a line of the way's array. Pieces fill whole rows, whose width all kinds of the stack share (``packing.py``).
- *batch*: stacks that are in memory at once. Large models take several, one after another.
- *send*: every device gives each owner its pieces of the owner's matrices, in one all-to-all. Where the owner holds all
  pieces, nothing travels (``exchange.py``).
- *return*: every owner gives each device its pieces of the results, in one all-to-all. Where devices hold copies, one
  all-gather follows.
- *plan*: all of the above for one tree of parameters, with its cost: static and printable (``plan.py``, made by
  ``make_plan.py``). ``given.py`` finds the plan that an update follows.

``checks.py`` has the refusals. ``muon_optax/_state`` says where the optimizer's state lies.
"""
