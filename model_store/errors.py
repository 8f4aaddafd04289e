"""The one shape that every refusal in AlgoMart has.

The tree (each package adds leaves beside the concept that they belong to)::

    Refusal                       something the caller can mend; carries code, status, text in zh and en, remedy
    ├── BadInput            400   a field breaks a rule
    ├── Unauthenticated     401   no key, or a key that is not (or no longer) valid
    ├── PaymentRequired     402   no voucher, lease or cap covers the call
    ├── Forbidden           403   a valid key that may not do this
    ├── NotFound            404   nothing of that name that the caller may see
    ├── TooSlow             408   the request took too long to arrive
    ├── Conflict            409   the state has moved on, or the name or key is taken
    ├── TooLarge            413   a body, file, name or output is over its limit
    ├── Unprocessable       422   well-formed, but it cannot be done with this model or file
    ├── TooMany             429   a queue, rate or daily bound is full; `retry_after_s` says when
    ├── HeadTooLarge        431   the request line and headers are over their limit
    ├── Broken              500   our fault
    ├── NotHere             501   this server does not do that; says which one does
    ├── Unavailable         503   a part is not up (yet); `retry_after_s` says when
    └── DeadlineExceeded    504   the run took longer than its deadline
"""

from __future__ import annotations

from typing import Any, ClassVar


class Refusal(Exception):
    """A refusal with a stable code, bilingual text and the remedy.

    `code` is UPPER_SNAKE and never changes once released; `field` names what broke the rule (a JSON path, a column,
    a tensor, a file). `details` holds JSON-able extras. Rendered by one handler per protocol.
    """

    status: ClassVar[int] = 400

    def __init__(
        self,
        code: str,
        *,
        zh: str,
        en: str,
        remedy_zh: str = "",
        remedy_en: str = "",
        field: str | None = None,
        retry_after_s: int | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{code}: {en}")
        self.code = code
        self.zh = zh
        self.en = en
        self.remedy_zh = remedy_zh
        self.remedy_en = remedy_en
        self.field = field
        self.retry_after_s = retry_after_s
        self.details = details or {}

    def as_dict(self, request_id: str | None = None) -> dict[str, Any]:
        """The body of `{"error": …}` on every JSON surface except Open Inference (where `error` is a string)."""
        body: dict[str, Any] = {
            "code": self.code,
            "message": self.en,
            "message_zh": self.zh,
            "remedy": self.remedy_en,
            "remedy_zh": self.remedy_zh,
        }
        if self.field is not None:
            body["field"] = self.field
        if self.retry_after_s is not None:
            body["retry_after_s"] = self.retry_after_s
        if self.details:
            body["details"] = self.details
        if request_id is not None:
            body["request_id"] = request_id
        return body

    def forget_frames(self) -> None:
        """Let go of the frames that it came through, once it has been answered.

        They hold the call, whose futures hold the refusal: a ring that only the garbage collector takes apart, while
        everybody waits (50 ms for the 35,000 objects of 500 refused calls).
        """
        error: BaseException | None = self
        while error is not None and error.__traceback__ is not None:
            error.__traceback__ = None
            error = error.__context__


class BadInput(Refusal):
    status = 400


class Unauthenticated(Refusal):
    status = 401


class PaymentRequired(Refusal):
    status = 402


class Forbidden(Refusal):
    status = 403


class NotFound(Refusal):
    status = 404


class TooSlow(Refusal):
    status = 408


class Conflict(Refusal):
    status = 409


class TooLarge(Refusal):
    status = 413


class Unprocessable(Refusal):
    status = 422


class TooMany(Refusal):
    status = 429


class HeadTooLarge(Refusal):
    status = 431


class Broken(Refusal):
    status = 500


class NotHere(Refusal):
    status = 501


class Unavailable(Refusal):
    status = 503


class DeadlineExceeded(Refusal):
    status = 504
