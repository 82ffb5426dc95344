"""Low-rank members: their noise is added in the forward pass, so that they share one batch.

`members` has the equations and the batch, `linear`, `embedding` and `vectors` the layers. A new kind of layer is a
module here, found by `perturb.selection` and made by `members`.
"""
