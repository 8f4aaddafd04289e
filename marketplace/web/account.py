"""Becoming and being somebody: registration of an organisation, invitation, forgotten password."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from marketplace.web.rendering import PageRoute, page

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/register")
def register(request: Request) -> Response:
    """The form of a new enterprise or vendor; an operator approves it."""
    return page(request, "register.html", refusal=None, values={}, action="register")


@router.get("/password")
def password(request: Request, token: str = "", kind: Literal["invitation", "reset"] = "reset") -> Response:
    """A new password, by the one-time token of an invitation or a reset."""
    action = "accept" if kind == "invitation" else "reset"
    return page(request, "password.html", refusal=None, values={"token": token}, action=action)


@router.get("/forgot")
def forgot(request: Request) -> Response:
    """Ask the owners of one's organisation, and the operators, for a reset."""
    return page(request, "forgot.html")
