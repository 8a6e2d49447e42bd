import { answer } from "../_shared/serving.ts";

const ROUTE = new URLPattern({ pathname: "/status/:p_document_id" });

/** GET /functions/v1/status/{document_id}: where a document stands, as get_document_status tells. */
export default {
  fetch: (request: Request) => answer(request, ROUTE, "get_document_status"),
};
