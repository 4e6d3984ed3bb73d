"""The page Accounts: who may log in, and the tokens of programs."""

from __future__ import annotations

from flask import Blueprint, make_response, render_template, request

from ....errors import SettingsError
from ...context import Context
from .. import accounts
from ..forms import Problems
from .base import Answer, done, form, unsure

__all__ = ["add"]


def add(routes: Blueprint, context: Context) -> None:
    def page(problems: Problems, **shown: str) -> Answer:
        text = render_template(
            "accounts.html",
            found=accounts.listing(context),
            tokens=accounts.token_listing(context),
            roles=accounts.ROLES,
            problems=problems,
            values=request.form if problems else {},
            **shown,
        )
        return make_response(text, 422 if problems else 200)

    @routes.get("/accounts")
    @form(context)
    def accounts_page() -> Answer:
        return page(Problems())

    @routes.post("/accounts/users")
    @form(context)
    def user_do() -> Answer:
        name, role = request.form.get("name", "").strip(), request.form.get("role", "viewer")
        problems = Problems()
        try:
            match request.form.get("do"):
                case "add":
                    return page(problems, name=name, password=accounts.add(context, name, role))
                case "password":
                    if question := unsure(f"Make a new first password for {name}? Its sessions end."):
                        return question
                    return page(problems, name=name, password=accounts.reset_password(context, name))
                case "role":
                    accounts.set_role(context, name, role)
                    return done("accounts_page", "changed")
                case "remove":
                    if question := unsure(f"Remove the account {name}? Its sessions end."):
                        return question
                    accounts.remove(context, name)
                    return done("accounts_page", "removed")
        except SettingsError as err:
            problems.add(err, {"name": ""} if request.form.get("do") == "add" else None)
        return page(problems)

    @routes.post("/accounts/tokens")
    @form(context)
    def token_do() -> Answer:
        name, problems = request.form.get("token_name", "").strip(), Problems()
        try:
            if request.form.get("do") == "remove":
                if question := unsure(f"End the token {name}?"):
                    return question
                accounts.remove_token(context, name)
                return done("accounts_page", "removed")
            text = request.form.get("days", "").strip()
            if text and not (text.isascii() and text.isdecimal() and len(text) < 6):
                raise SettingsError("days", "is not a number of days")
            made = accounts.make_token(
                context, name, request.form.get("role", "viewer"), int(text) if text else None
            )
            return page(problems, token_name=name, token=made.secret)
        except SettingsError as err:
            at = "token_name" if err.path == "--name" else err.path
            problems.add(SettingsError(at, err.reason, hint=err.hint), {"token_name": "", "days": ""})
        return page(problems)
