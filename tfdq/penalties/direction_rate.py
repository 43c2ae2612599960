"""How strongly a penalty on a folded kernel turns the kernel itself; needs no TensorFlow."""

DIRECTION_RATE = 0.01
"""Factor of the penalty's gradient with respect to a kernel whose BatchNorm has a gamma.

Gamma keeps the whole gradient. An optimizer such as Adam moves each weight by about its learning
rate in whatever direction its gradient keeps, so the many weights of a kernel turn a channel much
faster than its one gamma scales it: fast enough to damage a trained network. At 0.01 the gradient
of the loss has a say in the direction.
"""
