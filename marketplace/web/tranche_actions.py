"""The forms of a programme's tranches that wait for an approval of their own."""

from __future__ import annotations

from marketplace.vouchers import tranches_api as tranches
from marketplace.web.action import Action

_BACK = "/city/programmes"

TRANCHE_ACTIONS = {
    "propose-tranche": Action(tranches.decide_tranche, _BACK, fixed={"decision": "propose"},
                              ask=("提出批准该批次? 须由另一人批准; 此前不动用资金。",
                                   "Propose to approve this tranche? Another person has to approve it; no money moves "
                                   "before.")),
    "approve-tranche": Action(tranches.decide_tranche, _BACK, fixed={"decision": "approve"},
                              ask=("批准该批次? 随即可从中发券, 不能撤回。",
                                   "Approve this tranche? Vouchers may be issued from it at once, and it is not "
                                   "taken back.")),
    "decline-tranche": Action(tranches.decide_tranche, _BACK, fixed={"decision": "decline"},
                              ask=("不予批准? 该批次继续等待, 可再次提出。",
                                   "Decline it? The tranche waits on, and may be proposed again.")),
    "withdraw-tranche": Action(tranches.decide_tranche, _BACK, fixed={"decision": "withdraw"},
                               ask=("撤回该提议? 该批次继续等待。", "Withdraw this proposal? The tranche waits on.")),
}  # fmt: skip
