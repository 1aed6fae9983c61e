"""The class behind each name of ``decdpo.losses.names``; its fields are that loss's options."""

from decdpo.losses.balanced import BDPO, NbDPO, NbDPOv2, SymmetricNbDPO, SymmetricNbDPOv2
from decdpo.losses.beta_dpo import BetaDPO
from decdpo.losses.cpo import CPO
from decdpo.losses.dpo import DPO, RobustDPO
from decdpo.losses.fedpdpo import FedPDPO
from decdpo.losses.hinge import Hinge, SLiC
from decdpo.losses.ipo import IPO, SummedIPO
from decdpo.losses.kto import KTO
from decdpo.losses.odpo import ODPO, LogODPO
from decdpo.losses.rdpo_length import LengthDPO
from decdpo.losses.simpo import SimPO

LOSS_CLASSES: dict[str, type] = {
    "dpo": DPO,
    "robust": RobustDPO,
    "ipo": IPO,
    "ipo_sum": SummedIPO,
    "hinge": Hinge,
    "slic": SLiC,
    "simpo": SimPO,
    "odpo": ODPO,
    "odpo_log": LogODPO,
    "rdpo_length": LengthDPO,
    "beta_dpo": BetaDPO,
    "kto": KTO,
    "cpo": CPO,
    "fedpdpo": FedPDPO,
    "nbdpo": NbDPO,
    "nbdpo_symmetric": SymmetricNbDPO,
    "nbdpo_v2": NbDPOv2,
    "nbdpo_v2_symmetric": SymmetricNbDPOv2,
    "bdpo": BDPO,
}
"""Every loss by its name: each a PairLoss, but for ``beta_dpo``, a RunningLoss."""
