"""Logging in and out, and one's own password."""

from __future__ import annotations

from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for

from ....errors import SettingsError
from ...context import Context
from .. import accounts, guard, sessions
from ..forms import Problems
from .base import Answer, caller, done, form, lines, problem_lines, show, wants_lines

__all__ = ["add"]


def add(routes: Blueprint, context: Context) -> None:
    @routes.get("/")
    def home() -> Answer:
        return make_response(redirect(url_for("pages.devices")))

    @routes.route("/login", methods=["GET", "POST"])
    def log_in() -> Answer:
        if request.method == "GET":
            return render_template("login.html", name="", problem="")
        if _from_elsewhere():
            return _again("", "The form came from another site. Load this page anew and try again.", 403)
        name = request.form.get("name", "")
        try:
            found = accounts.log_in(context, name, request.form.get("password", ""), guard.address(context))
        except accounts.LoginRefused as err:
            response = _again(name, f"{str(err)[0].upper()}{str(err)[1:]}.", 429 if err.retry_after else 401)
            if err.retry_after:
                response.headers["Retry-After"] = str(err.retry_after)
            return response
        session = sessions.begin(context, found)
        if wants_lines():
            response = lines([{"csrf": session.csrf, "first": found.must_change}])
        else:
            response = make_response(redirect(url_for("pages.home"), 303))
        _set_cookie(response, session.secret)
        return response

    @routes.get("/session")
    @show(context)
    def session() -> Answer:
        """For a page that was open for long: is its session still good, and what must its forms carry by now?"""
        found = caller().session
        assert found is not None
        return lines([{"csrf": found.csrf, "first": found.account.must_change}])

    @routes.post("/logout")
    @form(context, changes=False)
    def log_out() -> Answer:
        if (session := caller().session) is not None:
            sessions.end(context, session)
        response = done("log_in", "out")
        response.delete_cookie(sessions.COOKIE, path="/")
        return response

    @routes.route("/password", methods=["GET", "POST"])
    @form(context, changes=False)
    def password() -> Answer:
        session, problems = caller().session, Problems()
        assert session is not None
        if request.method == "POST":
            try:
                if request.form.get("new_password", "") != request.form.get("again", ""):
                    raise SettingsError("again", "is not the same as the new password")
                old, new = request.form.get("old_password", ""), request.form.get("new_password", "")
                accounts.change_password(context, session.account.name, old, new, session.digest)
                return done("devices", "password")
            except SettingsError as err:
                problems.add(err)
        page = render_template("password.html", problems=problems, first=session.account.must_change)
        return make_response(page, 422 if problems else 200)

    def _set_cookie(response: Response, secret: str) -> None:
        response.set_cookie(
            sessions.COOKIE,
            secret,
            path="/",
            httponly=True,
            samesite="Strict",
            secure=guard.is_secure(context),
            max_age=sessions.LIFE_SECONDS,
        )


def _again(name: str, problem: str, status: int) -> Response:
    if wants_lines():
        return problem_lines(Problems(others=[problem]), status)
    return make_response(render_template("login.html", name=name[:64], problem=problem), status)


def _from_elsewhere() -> bool:
    """A login that another site sends would make the browser act under an account of that site's choice."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site not in {"same-origin", "none"}
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2] != request.host
