// Dialogs of the pages. The browser gives the focus back to where it was; Escape means no.
const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// Says what went wrong, on top of the page.
export function tell(text) {
  const place = document.getElementById("told");
  place.textContent = sentence(text);
  place.hidden = false;
  place.focus();
}

export function quiet() {
  const place = document.getElementById("told");
  if (place) place.hidden = true;
}

// True when the person agrees.
export function ask(text, yes) {
  const box = document.getElementById("ask");
  box.querySelector("p").textContent = text;
  box.querySelector("[value=yes]").textContent = yes;
  box.returnValue = "";
  box.showModal();
  return new Promise((resolve) => box.addEventListener("close", () => resolve(box.returnValue === "yes"), { once: true }));
}

// Logging in without leaving the page: what it answers, or null when nobody did.
function logIn() {
  const box = document.getElementById("again");
  const form = box.querySelector("form");
  const problem = box.querySelector(".alert");
  problem.hidden = true;
  box.showModal();
  return new Promise((resolve) => {
    let found = null;
    form.onsubmit = async (event) => {
      event.preventDefault();
      const answer = await send(form.action, new URLSearchParams(new FormData(form))).catch(() => null);
      const said = answer ? JSON.parse(await answer.text()) : { others: ["The proxy does not answer; try again."] };
      if (said.csrf) {
        found = said;
        box.close();
      } else {
        problem.textContent = said.others.join(" ");
        problem.hidden = false;
        form.elements.password.select();
      }
    };
    box.addEventListener("close", () => { form.elements.password.value = ""; resolve(found); }, { once: true });
  });
}

const send = (address, body) => fetch(address, { method: body ? "POST" : "GET", body, headers: { Accept: "application/x-ndjson" } });

// Is somebody logged in? Asks for it when not, and brings the forms of the page up to date.
export async function inSession() {
  let said = null;
  try {
    const answer = await send("/session");
    if (answer.status === 401) {
      said = await logIn();
      if (said?.first) throw new Error("This account must choose a password first: do that in another tab, then try again here.");
    } else if (answer.ok) said = JSON.parse(await answer.text());
    else throw new Error("The proxy cannot tell who you are; its log says more. What you entered is still here.");
  } catch (error) {
    tell(error instanceof TypeError ? "The proxy does not answer. What you entered is still here; try again." : error.message);
    return false;
  }
  if (!said) return false;
  for (const field of document.querySelectorAll("input[name=csrf]")) field.value = said.csrf;
  return true;
}

// The lines of an answer, each decoded, as they come. An Error has a sentence for people.
export async function* lines(address, body) {
  const answer = await send(address, body);
  if (answer.headers.get("Content-Type") !== "application/x-ndjson") {
    const plain = answer.headers.get("Content-Type")?.startsWith("text/plain");
    throw new Error(plain ? sentence((await answer.text()).trim()) + "." : "It was refused; load this page anew and try again.");
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    rest += value || "";
    const whole = rest.split("\n");
    rest = whole.pop();
    for (const line of whole) if (line) yield JSON.parse(line);
    if (done) return;
  }
}
