// What is asked of the server. Where it cannot answer nothing is said, here or in the console.

import { api } from "../../scripts/api.js";

const REST = 300; // ms that a question must stand unchanged before it is sent

/** The JSON behind a route; null if there is none. */
export async function get(route, options) {
  try {
    const answer = await api.fetchApi(route, options);
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

/** A question that changes while somebody types: sent when it rests, once, and only its newest answer counts. */
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
