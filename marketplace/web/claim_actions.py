"""The forms of city hall's desk for claims. Each step of a batch is its own, so that each asks what it is about."""

from __future__ import annotations

from marketplace.claims import api as claims
from marketplace.ledger import api as ledger
from marketplace.nodes import write_off_api as write_offs
from marketplace.web.action import Action

_BATCH = "/city/claims/{claim_id}"


def _step(decision: str, zh: str = "", en: str = "") -> Action:
    return Action(claims.decide_claim, _BATCH, fixed={"decision": decision}, ask=(zh, en) if zh else None)


def _line(decision: str, zh: str, en: str) -> Action:
    return Action(claims.decide_line, _BATCH, fixed={"decision": decision}, ask=(zh, en))


def _correction(decision: str, zh: str, en: str) -> Action:
    return Action(claims.decide_correction, "/city/corrections", fixed={"decision": decision}, ask=(zh, en))


def _clawback(decision: str, zh: str, en: str) -> Action:
    return Action(claims.decide_clawback, "/city/clawbacks", fixed={"decision": decision}, ask=(zh, en))


def _write_off(decision: str, zh: str, en: str) -> Action:
    return Action(write_offs.decide_write_off, "/city/nodes", fixed={"decision": decision}, ask=(zh, en))


CLAIM_ACTIONS = {
    "create-claim": Action(claims.create_claim, "/city/claims/{made}"),
    "freeze-claim": _step("freeze", "冻结该批次? 可申报的扣费随即转入, 文件以 SHA-256 固定。",
                          "Freeze this batch? What can be claimed moves into it, under the hash of its document."),
    "discard-claim": _step("discard", "放弃该批次?", "Discard this batch?"),
    "submit-claim": _step("submit"),
    "review-claim": _step("review"),
    "publish-claim": _step("publish", "公示该批次? 公示期自今日起算。",
                           "Put this batch on public notice? Its days count from today."),
    "approve-claim": _step("approve", "批准该批次? 批准后明细不能再退回或驳回。",
                           "Approve this batch? Its lines cannot be returned or rejected afterwards."),
    "return-claim": _step("return", "退回整个批次? 所有明细可重新申报。",
                          "Return the whole batch? All its lines may be claimed again."),
    "pay-claim": Action(claims.enter_payment, _BATCH,
                        ask=("登记这笔付款? 须由另一人确认。",
                             "Enter this payment? Another person has to confirm it.")),
    "unpay-claim": _step("unpay", "撤销付款登记?", "Take the entry of this payment back?"),
    "confirm-payment": _step("confirm-payment", "确认已付款? 分录随即入账, 不能撤销。",
                             "Confirm the payment? It is posted at once and cannot be undone."),
    "reconcile-claim": _step("reconcile", "与银行流水核对无误?", "Does it agree with the bank's statement?"),
    "return-line": _line("return", "退回该行? 之后可重新申报。", "Return this line? It may be claimed again."),
    "reject-line": _line("reject", "驳回该行? 额度退回资金池, 不能再申报。",
                         "Reject this line for good? Its entitlement goes back to the pool."),
    "enter-invoice": Action(claims.enter_invoice, _BATCH),
    "propose-correction": Action(claims.propose_correction, "/city/corrections",
                                 ask=("提出更正? 须由另一人入账。",
                                      "Propose this correction? Another person has to post it.")),
    "post-correction": _correction("post", "更正入账? 该次调用的扣费随即退回。",
                                   "Post this correction? What the call was charged is taken back at once."),
    "decline-correction": _correction("decline", "不予更正?", "Decline this correction?"),
    "open-clawback": Action(claims.open_clawback, "/city/clawbacks",
                            ask=("发起追回? 须由另一人确认。",
                                 "Open this clawback? Another person has to confirm it.")),
    "confirm-clawback": _clawback("confirm", "确认追回? 企业随即欠下该金额。",
                                  "Confirm this clawback? The enterprise owes the amount at once."),
    "drop-clawback": _clawback("drop", "撤销追回?", "Drop this clawback?"),
    "demand-clawback": _clawback("demand", "已向企业发出催缴?", "Has the enterprise been told to pay?"),
    "recover-clawback": _clawback("recover", "款项已收回?", "Has the money come back?"),
    "write-off-clawback": _clawback("write-off", "核销该笔追回? 须两人先后提出。",
                                    "Write this clawback off? It takes two persons, one after the other."),
    "propose-write-off": Action(write_offs.propose_write_off, "/city/nodes",
                                ask=("提出核销该期? 须由另一人批准。",
                                     "Propose to write this epoch off? Another person has to approve it.")),
    "approve-write-off": _write_off("approve", "批准核销? 额度随即退回, 该期不能再领额度。",
                                    "Approve the write-off? What its leases hold goes back at once, and it gets none."),
    "decline-write-off": _write_off("decline", "不予核销?", "Decline the write-off?"),
    "check-ledger": Action(ledger.check_ledger, "/city/ledger"),
}  # fmt: skip
