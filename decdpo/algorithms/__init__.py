"""Distributed optimization algorithms, one paper per file.

How to add one
--------------
An algorithm says what agent i does with its gradient and with the messages it receives. It knows
nothing of ranks, rounds or data: the loop in ``decdpo.train`` calls it, and an exchange carries its
messages. The contract is ``decdpo.algorithms.base.Algorithm``. This is a complete one, the file
``gossip/consensus_penalty.py``:

    '''Decentralized SGD with a penalty on disagreement.

        x_i <- x_i - eta g_i(x_i) + eta lambda sum_j w_ij (x_j - x_i)
    '''

    from dataclasses import dataclass
    from typing import ClassVar

    from torch import Tensor

    from decdpo.algorithms.base import Needs
    from decdpo.messages import Inbox
    from decdpo.params.optim import Optimizer, OptimState


    @dataclass
    class PenaltyState:
        '''x : (P,) the parameters. optim : of the optimizer. lr : of the last local step.'''

        x: Tensor
        optim: OptimState
        lr: float = 0.0


    @dataclass(frozen=True)
    class ConsensusPenalty:
        '''``optimizer`` takes the local steps. num_shared : M. strength : lambda.'''

        needs: ClassVar[Needs] = Needs(on_loss="keeps")

        optimizer: Optimizer
        num_shared: int
        strength: float = 1.0

        def init(self, x: Tensor) -> PenaltyState:
            return PenaltyState(x, self.optimizer.init(x))

        def message_size(self, num_shared: int) -> int:
            return num_shared

        def local_step(self, state: PenaltyState, grad: Tensor, lr: float) -> None:
            self.optimizer.step(state.x, state.optim, grad, lr)
            state.lr = lr

        def message(self, state: PenaltyState) -> Tensor:
            return state.x[: self.num_shared]

        def mix(self, state: PenaltyState, inbox: Inbox) -> None:
            inbox.displace(state.x[: self.num_shared], self.strength * state.lr)

- ``needs`` says what must hold for the algorithm to be sound: which weights, whether a message may
  be late, which optimizer, what the loss of an agent means (``decdpo.algorithms.base.Needs``). One
  checker, ``decdpo.config.needs``, reads it and refuses the configurations that break it.
- The state is a dataclass of tensors, numbers and further such dataclasses. All of it is saved, and
  a resumed run goes on to the bit; there is nothing to write for that. ``x`` is the model; it keeps
  its address, so change it in place. The algorithm itself holds constants only.
- The first ``num_shared`` parameters travel, the others are the agent's own.
- ``message`` returns a contiguous view of any size, ``message_size`` values; the exchange copies
  it. Put what travels together side by side in memory, as ``gossip/gradient_tracking.py`` does.
- ``Inbox.displace`` mixes whatever the messages came through, part by part while they arrive.
  Weights that do not sum to one in a row are the business of ``combine``. Otherwise call ``settle``
  before reading a message's body.
- Where it makes sense for parts of the vector to be mixed in turn, each as a vector of its own
  (``wrappers/fragments.py``): derive it from ``parts.InParts`` with ``mix_part`` in the place of
  ``mix``, as ``gossip/dsgd.py`` is, put ``in_parts=True`` among its needs, and give its section the
  key ``fragments``.
- If every local step moves the model itself and nothing else is sent, agents may take local steps
  at their own pace: ``own_pace=True``. ``pair_weights=True`` if the mean that it keeps may be one
  in which agents count by their pairs.
- ``Inbox.average`` writes the average itself, the agent's own term in its place by id.
- The same bits on any number of ranks come by themselves if ``mix`` takes the messages in their
  order and random numbers come from ``decdpo.rng``.

To make it a choice of the configuration it takes its section, in ``decdpo/config/algorithms.py``
with its line among ``ALGORITHM_SECTIONS`` (an entry ``overlap`` if messages may leave before the
local steps),

    @dataclass(frozen=True)
    class ConsensusPenalty(AlgorithmSection):
        '''Decentralized SGD with a penalty on disagreement.'''

        kind: str = option("consensus_penalty", "which algorithm")
        strength: float = option(1.0, "lambda, weight of the penalty", above=0.0)

and one line in ``decdpo/algorithms/catalogue.py``:

    "consensus_penalty": ConsensusPenalty,

Its fields besides ``optimizer`` and ``num_shared`` are read from the keys of the same name. To test
it: its recursion in matrix form beside those of ``tests/unit/test_algorithms_oracles.py``, and a
line in ``tests/mpi/test_mpi_algorithms.py``.
"""
