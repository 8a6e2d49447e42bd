import { answer } from "../_shared/serving.ts";

const ROUTE = new URLPattern({ pathname: "/stages/statistics" });

/** GET /functions/v1/stages/statistics: counts and durations of all stages, as get_stage_statistics tells. */
export default {
  fetch: (request: Request) => answer(request, ROUTE, "get_stage_statistics"),
};
