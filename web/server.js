// Requests to the server. If it cannot answer, nothing is shown, neither on the page nor in the console.

import { api } from "../../scripts/api.js";

const REST = 300; // ms without a change after which a question is sent

/** The JSON that a route answers with; null if it gives none. */
export async function get(route, options) {
  try {
    const answer = await api.fetchApi(route, options);
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

/** A question that changes while somebody types. It is sent once it rests, and only the newest answer counts. */
export class Question {
  answer = null;

  constructor(route) {
    this.route = route;
  }

  put(question) {
    const body = JSON.stringify(question);
    if (body === this.body) return;
    this.body = body;
    clearTimeout(this.timer);
    if (body !== this.sent) this.timer = setTimeout(() => this.send(body), REST);
  }

  async send(body) {
    this.sent = body;
    const headers = { "Content-Type": "application/json" };
    const answer = await get(this.route, { method: "POST", headers, body });
    if (body === this.sent) this.answer = answer;
  }
}
