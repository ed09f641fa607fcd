"""Prints (method, path) of every route of the webserver; runs inside its container."""

import json

from airflow.api_fastapi.app import create_app
from airflow.api_fastapi.execution_api.app import create_task_execution_api_app

HTTP = {"DELETE", "GET", "PATCH", "POST", "PUT"}


def documented(api, prefix):
    for path, methods in api.openapi()["paths"].items():
        yield from ((method.upper(), prefix + path) for method in methods)


def found():
    app = create_app()
    for each in app.routes:
        if each.path.startswith(("/api/v2/", "/ui/")):
            yield from ((method, each.path) for method in HTTP & each.methods)
    yield from documented(create_task_execution_api_app(), "/execution")
    (auth,) = (each.app for each in app.routes if each.path == "/auth")
    yield from documented(auth, "/auth")
    (pages,) = (each.app.app for each in auth.routes if each.path == "")
    for rule in pages.url_map.iter_rules():
        yield from ((method, f"/auth{rule}") for method in HTTP & rule.methods)


print(json.dumps(sorted(set(found()))))
