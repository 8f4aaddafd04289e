"""Forms that do things: each is bound to the very endpoint of the JSON API that does the same.

`POST /do/{action}` reads the form, builds the endpoint's own body model, asks the endpoint's own dependency who may,
and calls it. A page therefore cannot do what the API would refuse. What moves money or cannot be undone is asked once
more, with its amounts, before it is done; what is shown only once (a key, an invitation) is shown, not redirected.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, get_type_hints

from fastapi import APIRouter, Depends
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from marketplace.access import check_same_site, market_of
from marketplace.catalogue import api as catalogue
from marketplace.catalogue import rollouts_api as rollouts
from marketplace.keys import api as keys
from marketplace.market import Market
from marketplace.organisations import api as organisations
from marketplace.organisations import members_api
from marketplace.organisations.declaring import shareholders_of
from marketplace.review import api as reviews
from marketplace.vouchers import api as vouchers
from marketplace.vouchers import subscriptions_api as subscriptions
from marketplace.web.action import Action
from marketplace.web.case_actions import CASE_ACTIONS
from marketplace.web.claim_actions import CLAIM_ACTIONS
from marketplace.web.findings_desk import FINDING_ACTIONS
from marketplace.web.rendering import PageRoute, page
from marketplace.web.tranche_actions import TRANCHE_ACTIONS
from model_store.errors import BadInput, NotFound, Refusal

router = APIRouter(route_class=PageRoute, include_in_schema=False)
MAX_FIELDS = 200
LISTS = ("scopes", "asked")  # fields of which a form may have several


ACTIONS: dict[str, Action] = CLAIM_ACTIONS | CASE_ACTIONS | FINDING_ACTIONS | TRANCHE_ACTIONS | {
    "register": Action(organisations.register, "/register?done=1", form="register.html"),
    "accept": Action(members_api.accept, "/login?done=1", form="password.html"),
    "reset": Action(members_api.reset, "/login?done=1", form="password.html"),
    "forgot": Action(members_api.forgot, "/forgot?done=1"),
    "create-key": Action(keys.create_key, "/console/keys", reveal=("name", "key")),
    "rotate-key": Action(keys.rotate_key, "/console/keys", reveal=("name", "key"),
                         ask=("更换密钥? 旧密钥还有效 24 小时。", "Rotate this key? The old one works 24 hours more.")),
    "limit-key": Action(keys.limit_key, "/console/keys"),
    "revoke-key": Action(keys.revoke_key, "/console/keys",
                         ask=("吊销密钥? 用它的程序一秒内停止, 不能恢复。",
                              "Revoke this key? What uses it stops within a second, for good.")),
    "invite": Action(members_api.invite, "/console/members", reveal=("member.email", "accept_path")),
    "declare": Action(organisations.put_declaration, "/console/members",
                      ask=("更新申报信息? 此前的申报保留在审计日志中。",
                           "Declare this? What was declared before stays in the audit log.")),
    "disable-member": Action(members_api.disable, "/console/members",
                             ask=("停用该成员? 其会话与密钥立即失效。",
                                  "Disable this member? Sessions and keys end at once.")),
    "reset-member": Action(members_api.issue_reset, "/console/members", reveal=("reset_path",)),
    "read-notices": Action(organisations.read_notices, "/console/notices"),
    "subscribe": Action(subscriptions.subscribe, "/console/subscriptions",
                        ask=("订阅并按合约金额预留模型券?", "Subscribe, and reserve the voucher's share of it?")),
    "change-subscription": Action(subscriptions.change_subscription, "/console/subscriptions",
                                  ask=("按这些条件更改合约?", "Change the contract to these terms?")),
    "end-subscription": Action(subscriptions.end_subscription, "/console/subscriptions",
                               ask=("结束合约? 未用的预留退回模型券。",
                                    "End this contract? What is reserved and unused returns to the voucher.")),
    "submit-version": Action(catalogue.submit, "/vendor/models/{vendor}/{name}"),
    "withdraw-version": Action(catalogue.withdraw, "/vendor/models/{vendor}/{name}",
                               ask=("下架该版本? 新调用将被拒绝。", "Withdraw this version? New calls are refused.")),
    "set-rollout": Action(rollouts.put_rollout, "/vendor/models/{vendor}/{name}",
                          ask=("按此分配调用? 对之后的调用立即生效。",
                               "Share the calls like this? It holds from the next call on.")),
    "end-rollout": Action(rollouts.delete_rollout, "/vendor/models/{vendor}/{name}",
                          ask=("结束灰度? 之后的调用全部使用最新上架的版本。",
                               "End the rollout? Every call goes to the newest listed version.")),
    "set-price": Action(catalogue.post_price, "/vendor/models/{vendor}/{name}",
                        ask=("发布新价格? 对之后的调用生效。", "Publish this price? It holds for calls from then on.")),
    "approve-review": Action(reviews.approve, "/city"),
    "return-review": Action(reviews.return_, "/city"),
    "approve-organisation": Action(organisations.approve, "/city/organisations"),
    "reject-organisation": Action(organisations.reject, "/city/organisations"),
    "suspend-organisation": Action(organisations.suspend, "/city/organisations",
                                   ask=("暂停该单位? 其密钥一秒内停用。",
                                        "Suspend this organisation? Its keys stop within a second.")),
    "weigh-organisation": Action(organisations.weigh, "/city/organisations"),
    "activate-programme": Action(vouchers.activate, "/city/programmes",
                                 ask=("启用该计划? 资金池随即入账。",
                                      "Activate this programme? Its pool is authorised in the ledger.")),
    "propose-voucher": Action(vouchers.propose, "/city/vouchers",
                              ask=("提出发放该模型券? 须由另一人批准。",
                                   "Propose to issue this voucher? A second person has to approve it.")),
    "approve-voucher": Action(vouchers.decide_voucher, "/city/vouchers", fixed={"decision": "approve"},
                              ask=("批准发放? 面值随即从资金池划入。",
                                   "Approve? Its face value leaves the pool for the enterprise at once.")),
    "decline-voucher": Action(vouchers.decide_voucher, "/city/vouchers", fixed={"decision": "decline"},
                              ask=("不予批准? 不动用资金, 申请可再次提出; 原因会告知申请单位。",
                                   "Decline it? No money moves, the application may be proposed for again; "
                                   "the applicant is told the reason.")),
    "withdraw-voucher": Action(vouchers.decide_voucher, "/city/vouchers", fixed={"decision": "withdraw"},
                               ask=("撤回该项提议? 不动用资金, 申请可再次提出。",
                                    "Withdraw this proposal? No money moves, the application may be "
                                    "proposed for again.")),
    "suspend-voucher": Action(vouchers.decide_voucher, "/city/vouchers", fixed={"decision": "suspend"},
                              ask=("暂停该模型券?", "Suspend this voucher?")),
    "resume-voucher": Action(vouchers.decide_voucher, "/city/vouchers", fixed={"decision": "resume"}),
    "revoke-voucher": Action(vouchers.decide_voucher, "/city/vouchers", fixed={"decision": "revoke"},
                             ask=("提出撤销该模型券? 须由另一人确认; 此前照常使用。",
                                  "Propose to revoke this voucher? A second person has to confirm it; until then it "
                                  "goes on.")),
    "confirm-revocation": Action(vouchers.decide_voucher, "/city/vouchers", fixed={"decision": "confirm-revocation"},
                                 ask=("确认撤销? 未用部分退回资金池, 不能恢复; 原因会告知企业。",
                                      "Confirm the revocation? What is unused goes back to the pool, for good; the "
                                      "enterprise is told the reason.")),
    "decline-revocation": Action(vouchers.decide_voucher, "/city/vouchers", fixed={"decision": "decline-revocation"},
                                 ask=("不予撤销? 模型券照常使用。", "Decline it? The voucher goes on.")),
    "withdraw-revocation": Action(vouchers.decide_voucher, "/city/vouchers",
                                  fixed={"decision": "withdraw-revocation"},
                                  ask=("撤回撤销提议? 模型券照常使用。",
                                       "Withdraw this proposal? The voucher goes on.")),
    "register-filing": Action(catalogue.post_filing, "/city/filings"),
    "attach-filing": Action(catalogue.put_filing, "/city/filings"),
}  # fmt: skip


async def posted(request: Request) -> FormData:
    """The form of a request that comes from our own pages."""
    check_same_site(request)
    return await request.form(max_fields=MAX_FIELDS)


@router.post("/do/{action}")
async def do(action: str, request: Request, form: FormData = Depends(posted)) -> Response:
    """Carry out one form, or ask once more, or show what is wrong with it."""
    wanted = ACTIONS.get(action)
    if wanted is None:
        raise NotFound("ACTION_NOT_FOUND", zh="没有这项操作", en="there is no such action",
                       remedy_zh="请从页面上的按钮开始", remedy_en="start from a button on a page")  # fmt: skip
    market = market_of(request)
    fields = _fields(form) | dict(wanted.fixed or {})
    try:
        arguments = await run_in_threadpool(_arguments, wanted.endpoint, fields, request, market)
        if wanted.ask and "confirmed" not in form:
            shown = {
                name: value
                for name, value in fields.items()
                if not name.endswith(("_id", "_fen")) and name not in (wanted.fixed or {})
            }
            return page(request, "confirm.html", action=action, ask=wanted.ask, shown=shown,
                        pairs=[(n, v) for n, v in form.multi_items() if isinstance(v, str)],
                        cancel=_filled(wanted.back, fields))  # fmt: skip
        answer = await run_in_threadpool(wanted.endpoint, **arguments)
    except Refusal as refusal:
        if not wanted.form:
            raise
        return page(request, wanted.form, refusal.status, refusal=refusal.as_dict(""), values=fields, action=action)
    if wanted.reveal:
        facts = {name: _part(answer, name) for name in wanted.reveal}
        return page(request, "revealed.html", facts=facts, back=wanted.back)
    made = {"made": answer["id"]} if isinstance(answer, dict) and "id" in answer else {}
    return RedirectResponse(_filled(wanted.back, fields | made), 303)


def _filled(back: str, fields: Mapping[str, Any]) -> str:
    return back.format_map({name: value for name, value in fields.items() if isinstance(value, str)})


def _part(answer: Any, name: str) -> Any:
    for step in name.split("."):
        answer = answer[step]
    return answer


def _fields(form: FormData) -> dict[str, Any]:
    """What was filled in. `x_yuan` becomes `x_fen`; `values.a` and `evidence.a` are gathered; `LISTS` are lists."""
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if not isinstance(value, str) or name == "confirmed" or (not value.strip() and name != "password"):
            continue
        group, dot, key = name.partition(".")
        if name in LISTS:
            fields.setdefault(name, []).append(value)
        elif dot and group == "evidence":
            fields.setdefault("evidence", []).append({"code": key, "value": value})
        elif dot and group == "values":
            _name_value(fields.setdefault("values", {}), key, value)
        elif name.endswith("_yuan"):
            fields[name] = value
            fields[f"{name[:-5]}_fen"] = fen_of_yuan(name, value)
        else:
            fields[name] = value if name == "password" else value.strip()
    return fields


def _name_value(values: dict[str, Any], key: str, text: str) -> None:
    """What a programme leaves open: `ratio.num` goes inside `ratio`; of the evidence one line is one item."""
    if key == "evidence_schema":
        lines = [[part.strip() for part in line.split("|")] for line in text.splitlines() if line.strip()]
        names = ("code", "title_zh", "title_en", "kind")
        values[key] = [dict(zip(names, parts, strict=False)) | {"required": True} for parts in lines]
        return
    outer, dot, inner = key.partition(".")
    value = int(text) if text.strip().isdigit() else text.strip()
    if dot:
        values.setdefault(outer, {})[inner] = value
    else:
        values[key] = value


def fen_of_yuan(name: str, text: str) -> int:
    """Yuan with at most two decimals, as fen. `BadInput` AMOUNT_INVALID."""
    try:
        fen = Decimal(text.strip().replace(",", "")) * 100
        if fen != int(fen) or abs(fen) > 10**13:
            raise InvalidOperation
    except (InvalidOperation, ValueError, OverflowError):
        raise BadInput(
            "AMOUNT_INVALID",
            zh=f"“{text[:40]}”不是金额",
            en=f"{text[:40]!r} is not an amount of money",
            remedy_zh="请填写以元为单位的数字, 最多两位小数, 如 1000.50",
            remedy_en="write yuan with at most two decimals, such as 1000.50",
            field=name,
        ) from None
    return int(fen)


def _arguments(
    endpoint: Callable[..., Any], fields: dict[str, Any], request: Request, market: Market
) -> dict[str, Any]:
    """What the endpoint takes, from the form; who acts is judged by the endpoint's own dependency."""
    hints = get_type_hints(endpoint)
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(endpoint).parameters.items():
        model = _body_model(hints[name])
        if name == "market":
            arguments[name] = market
        elif name == "request":
            arguments[name] = request
        elif name == "actor":
            arguments[name] = parameter.default.dependency(request)
        elif model is not None:
            arguments[name] = _body(model, fields)
        elif name in fields:
            arguments[name] = _plain(name, fields[name], hints[name])
        else:
            raise _invalid(name, "missing")
    return arguments


def _plain(name: str, value: Any, hint: Any) -> Any:
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        raise _invalid(name, error.errors()[0]["msg"]) from None


def _body_model(hint: Any) -> type[BaseModel] | None:
    """The pydantic model of `Model` or `Model | None`."""
    for each in getattr(hint, "__args__", None) or (hint,):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
    return None


def _body(model: type[BaseModel], fields: dict[str, Any]) -> BaseModel:
    given = {name: value for name, value in fields.items() if name in model.model_fields}
    if "controllers" in given:
        given["controllers"] = [
            part for part in str(given["controllers"]).replace("、", ",").split(",") if part.strip()
        ]
    if "shareholders" in given:
        given["shareholders"] = shareholders_of(str(given["shareholders"]))
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise _invalid(str(first["loc"][0]) if first["loc"] else "form", first["msg"]) from None


def _invalid(name: str, why: str) -> BadInput:
    return BadInput(
        "FORM_INVALID",
        zh=f"“{name}”没有填对",
        en=f"{name}: {why}",
        remedy_zh="请检查该项后重新提交",
        remedy_en="check this field and send the form again",
        field=name,
    )
