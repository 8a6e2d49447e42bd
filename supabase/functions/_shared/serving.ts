/**
 * What the functions have in common: a GET is one call of one SQL function through PostgREST, with the rights of the
 * caller, and its answer is handed on as it is. No rules, no dependencies.
 */

// Any site may ask: what is answered depends on the token that is sent along, never on a cookie.
const HEADERS = {
  "access-control-allow-origin": "*",
  "access-control-allow-methods": "GET, OPTIONS",
  "access-control-allow-headers": "authorization, apikey, x-client-info, content-type, if-none-match",
  "access-control-expose-headers": "etag, retry-after",
  "access-control-max-age": "3600",
  "cache-control": "private, no-cache",
  "vary": "Authorization, apikey",
};

// Longer than the statement timeout of a hosted project, after which PostgREST answers by itself.
const PATIENCE_MS = 10_000;

// The codes of PostgREST that say something about the question or the token, beside its refusals. By names from outside:
// a Map, because an object knows such names as "constructor" before they come.
const STATUS_OF_CODE = new Map([["PT404", 404], ["22P02", 422], ["22023", 401]]);
// What no SQL function of ours raises has no word of its own.
const WORD_OF_CODE = new Map([["22P02", "invalid_document_id"]]);
// It has the same code as a right that a role lacks.
const NO_ROLE_OF_CALLERS = "permission denied to set role";
// What servers say of a token that is too long for them, in words of their own.
const TOO_LONG = [400, 413, 414, 431];
const USUAL_TOKEN = 4096;
const REFUSED = [401, 403];

const HEADERS_OF_STATUS: Record<number, Record<string, string>> = {
  401: { "www-authenticate": "Bearer" },
  405: { allow: "GET, OPTIONS" },
  503: { "retry-after": "2" },
};

/** Why a request was not answered: in a sentence, what to do about it, and as a word for programs. */
interface Problem {
  detail: string;
  hint: string | null;
  error: string | null;
}

/**
 * Answer a request with what a SQL function of schema krai_core returns.
 *
 * @param request GET, with the caller's JWT in Authorization, a key in apikey, or both.
 * @param route Path of the function; its named groups are the parameters of the SQL function.
 * @param name SQL function, a stable one.
 * @returns 200 with its JSON, or 304 where If-None-Match names that very JSON; 401, 403, 404, 405, 422 or 503 with a
 *   Problem.
 */
export async function answer(request: Request, route: URLPattern, name: string): Promise<Response> {
  const parameters = route.exec(request.url)?.pathname.groups;
  if (request.method === "OPTIONS") {
    return new Response(null, { status: 204, headers: HEADERS });
  }
  if (!parameters) {
    const detail = `there is nothing at ${new URL(request.url).pathname}`;
    const hint = `Ask for ${route.pathname.replace(/:p_(\w+)/, "{$1}")}`;
    return failure(404, { detail, hint, error: "not_found" });
  }
  if (request.method !== "GET") {
    return failure(405, { detail: `${request.method} is not served here`, hint: "Use GET", error: "not_allowed" });
  }
  try {
    const answered = await call(name, parameters as Record<string, string>, request.headers);
    const body = await answered.text();
    if (isTooLong(answered.status, body, request.headers)) {
      return failure(401, { detail: "the token is too long", hint: "Keep its claims short", error: null });
    }
    // A body that is no JSON is not PostgREST's, whatever its status.
    const told = JSON.parse(body);
    return answered.ok ? await success(body, request.headers) : refusal(answered.status, told);
  } catch (error) {
    return unavailable(error);
  }
}

function call(name: string, parameters: Record<string, string>, caller: Headers): Promise<Response> {
  const headers = new Headers({ "accept-profile": "krai_core", apikey: caller.get("apikey") ?? publicKey() });
  const token = caller.get("authorization");
  if (token) {
    headers.set("authorization", token);
  }
  const url = `${Deno.env.get("SUPABASE_URL")}/rest/v1/rpc/${name}?${new URLSearchParams(parameters)}`;
  return fetch(url, { headers, signal: AbortSignal.timeout(PATIENCE_MS) });
}

/** The key that opens the gateway and gives no rights; legacy projects have the one of the role anon. */
function publicKey(): string {
  const keys = JSON.parse(Deno.env.get("SUPABASE_PUBLISHABLE_KEYS") ?? "{}");
  return keys.default ?? Deno.env.get("SUPABASE_ANON_KEY") ?? "";
}

async function success(body: string, caller: Headers): Promise<Response> {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(body));
  const etag = `"${btoa(String.fromCharCode(...new Uint8Array(digest)))}"`;
  const headers = { ...HEADERS, etag };
  // A gateway that compresses makes it W/"...", which is the same JSON all the same.
  if (caller.get("if-none-match")?.includes(etag)) {
    return new Response(null, { status: 304, headers });
  }
  return new Response(body, { headers: { ...headers, "content-type": "application/json" } });
}

function refusal(status: number, told: Record<string, string | null>): Response {
  const { code, message, hint, details } = told;
  const refused = message?.startsWith(NO_ROLE_OF_CALLERS) ? 401 : REFUSED.includes(status) ? status : null;
  const known = STATUS_OF_CODE.get(code ?? "") ?? refused;
  if (known === null) {
    return unavailable(`HTTP ${status} ${JSON.stringify(told)}`);
  }
  // Our SQL functions put a word into DETAIL, with further values.
  const error = details?.startsWith("{") ? JSON.parse(details).error : WORD_OF_CODE.get(code ?? "");
  return failure(known, { detail: message ?? "", hint: hint ?? null, error: error ?? null });
}

/** Whether a server before PostgREST, or PostgREST before it reads anything, refuses the length of the token. */
function isTooLong(status: number, body: string, caller: Headers): boolean {
  const token = caller.get("authorization") ?? "";
  return TOO_LONG.includes(status) && token.length > USUAL_TOKEN && !body.startsWith("{");
}

function unavailable(reason: unknown): Response {
  // Words about the inside, such as a host or an old schema, are for those who run the project.
  console.error(`HTTP 503: ${reason}`);
  return failure(503, { detail: "the database cannot be asked now", hint: "Try again later", error: "unavailable" });
}

function failure(status: number, problem: Problem): Response {
  return Response.json(problem, { status, headers: { ...HEADERS, ...HEADERS_OF_STATUS[status] } });
}
