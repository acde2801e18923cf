"""The OpenAPI document: complete, and what it says is what happens (Schemathesis tries)."""

import pytest

PATHS = {
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/nmoe",
    "/v2/models/nmoe/ready",
    "/v2/models/nmoe/config",
    "/v2/models/nmoe/infer",
    "/v2/models/nmoe/versions/{version}",
    "/v2/models/nmoe/versions/{version}/ready",
    "/v2/models/nmoe/versions/{version}/config",
    "/v2/models/nmoe/versions/{version}/infer",
    "/v2/models/nmoe/feedback",
    "/v2/mesh",
    "/v2/repository/index",
    "/v2/repository/models/nmoe/load",
    "/metrics",
}


def test_every_path_is_described(ask):
    document = ask("GET", "/openapi.json").json
    assert set(document["paths"]) == PATHS
    operations = [one for methods in document["paths"].values() for one in methods.values()]
    names = [one["operationId"] for one in operations]
    assert len(set(names)) == len(names)
    assert all("200" in one["responses"] and "422" not in one["responses"] for one in operations)
    infer = document["paths"]["/v2/models/nmoe/infer"]["post"]
    assert set(infer["responses"]) == {"200", "400", "403", "404", "405", "408", "413", "415", "500", "503", "504"}
    assert set(infer["requestBody"]["content"]) == {"application/json", "application/octet-stream"}


def test_schemathesis_finds_nothing_undocumented(serve, service):
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    url = f"http://{serve(service).address}"
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in schemathesis.GenerationMode:

            @settings(
                max_examples=15,
                derandomize=True,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(operation.as_strategy(generation_mode=mode))
            def conforms(case) -> None:
                nonlocal tried
                tried += 1
                case.call_and_validate(base_url=url, checks=checks)

            try:
                conforms()
            except Exception as error:
                if type(error).__name__ not in {"Unsatisfiable", "SkipTest"}:
                    raise
    assert tried >= 100
