"""The forms of case files: applications, evidence, objections, overrides, other declared subsidies."""

from __future__ import annotations

from marketplace.claims import api as claims
from marketplace.vouchers import applications_api as applications
from marketplace.vouchers import evidence_api as evidence
from marketplace.vouchers import notices_api as notices
from marketplace.vouchers import subsidies_api as subsidies
from marketplace.web.action import Action

_OWN, _CITY = "/console/applications/{application_id}", "/city/applications/{application_id}"

CASE_ACTIONS = {
    "apply": Action(applications.apply, "/console/applications/{made}"),
    "submit-application": Action(applications.submit, _OWN, ask=("提交申请?", "Hand in this application?")),
    "change-application": Action(applications.supplement, _OWN),
    "withdraw-evidence": Action(evidence.withdraw_evidence, _OWN,
                                ask=("撤回该文件? 它不再计入申请, 但仍按规定年限保存。",
                                     "Withdraw this file? It counts no longer, and is kept for its years.")),
    "decide-application": Action(applications.decide, _CITY),
    "object": Action(notices.object_to, "/notices/vouchers/{application_id}?done=1"),
    "dismiss-objection": Action(notices.decide_objection, _CITY, fixed={"decision": "dismiss"},
                                ask=("认定异议不成立? 理由会告知申请单位。",
                                     "Dismiss this objection? The applicant is told the reason.")),
    "uphold-objection": Action(notices.decide_objection, _CITY, fixed={"decision": "uphold"},
                               ask=("认定异议成立? 申请随即被拒绝, 理由会告知申请单位。",
                                    "Uphold this objection? The application is rejected, and is told why.")),
    "propose-override": Action(applications.propose_override, _CITY,
                               ask=("提出放行该项核验? 须由另一人批准。",
                                    "Propose to let this check pass? Another person has to approve it.")),
    "approve-override": Action(applications.decide_override, _CITY, fixed={"decision": "approve"},
                               ask=("批准放行该项核验?", "Approve letting this check pass?")),
    "decline-override": Action(applications.decide_override, _CITY, fixed={"decision": "decline"}),
    "enter-own-invoice": Action(claims.enter_invoice, "/console/invoices"),
    "declare-subsidy": Action(subsidies.declare_subsidy, "/console/subsidies",
                              ask=("申报该项补贴? 申报后本单位不能自行撤销。",
                                   "Declare this subsidy? Your organisation cannot take it back itself.")),
    "withdraw-subsidy": Action(subsidies.withdraw_subsidy, "/city/subsidies",
                               ask=("撤销该项申报?", "Withdraw this declaration?")),
}  # fmt: skip
