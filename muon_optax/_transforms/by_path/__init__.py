"""Settings by path: their record, the parameters on which they act, and the parts that use them."""
