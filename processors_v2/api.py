"""HTTP endpoints: where a document stands, the statistics of all stages, and live events. Needs the extra ``api``.

In an application of your own, with a tracker, or with a FastAPI dependency that gives the tracker of a request::

    app.include_router(create_router(StageTracker.from_env()), dependencies=[Depends(your_login)])

Or alone, where every caller has the rights of the token that it sends::

    SUPABASE_URL=... SUPABASE_PUBLISHABLE_KEY=... uvicorn processors_v2.api:app
"""

try:
    from processors_v2._api.app import app
    from processors_v2._api.router import create_router
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}: pip install 'stage-tracker[api]'", name=error.name) from error

__all__ = ["app", "create_router"]
