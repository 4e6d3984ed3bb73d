// What fields say and do while they are filled in.
export const all = (selector, root = document) => [...root.querySelectorAll(selector)];

const errorOf = (element) => document.getElementById(`${element.id}-error`);

// Puts a sentence at a field; an empty one takes it away. final: the form is not sent while it stands.
export function complain(element, text, final = false) {
  const place = errorOf(element);
  if (place) place.textContent = text;
  element.setCustomValidity?.(final ? text : "");
  if (text) element.setAttribute("aria-invalid", "true");
  else element.removeAttribute("aria-invalid");
}

export function input(element) {
  if (element.dataset.allowed) {
    const good = new RegExp(`^[${element.dataset.allowed}]*$`).test(element.value);
    const long = element.value.length > (element.dataset.most || Infinity);
    complain(element, !good ? element.dataset.allowedText : long ? `At most ${element.dataset.most} characters are allowed.` : "", true);
  } else if (element.type !== "file" && element.getAttribute("aria-invalid")) {
    complain(element, "");
  }
  if ("unique" in element.dataset) uniqueNames();
  if (element.dataset.fingerprint) fingerprint(element);
  if (element.dataset.showsHttps) httpsPart(element);
}

export function change(element) {
  if (element.type === "file" && element.dataset.max) fileSize(element);
  if (element.dataset.name) dependent(element.closest("[data-cert]"));
  if (element.dataset.all) all(`input[name=${element.dataset.all}]`, element.form).forEach((box) => { box.checked = element.checked; });
}

function fileSize(element) {
  const file = element.files[0];
  const large = file && file.size > Number(element.dataset.max);
  if (large) element.value = "";
  complain(element, large ? `${file.name} is larger than ${Math.round((element.dataset.max / 1048576) * 10) / 10} MiB: it was not taken.` : "");
}

function uniqueNames() {
  const seen = new Set();
  for (const element of all("[data-unique]")) {
    const twice = element.value && seen.has(element.value);
    complain(element, twice ? "Another certificate of this profile has this name." : "", true);
    seen.add(element.value);
  }
}

function fingerprint(element) {
  const digits = element.value.replace(/[\s:-]/g, "");
  const kinds = { 32: "MD5: it can be forged, SHA-256 cannot", 40: "SHA-1", 64: "SHA-256" };
  const kind = /^[0-9a-f]*$/i.test(digits) ? kinds[digits.length] || `${digits.length} digits: not yet a fingerprint` : "These are not hexadecimal digits.";
  document.getElementById(element.dataset.fingerprint).textContent = digits ? kind : "";
}

function httpsPart(element) {
  document.getElementById(element.dataset.showsHttps).hidden = !element.value.trim().toLowerCase().startsWith("https");
}

// Fields that count only for the unit or protocol that is chosen.
function dependent(cert) {
  if (!cert) return;
  const chosen = (name) => cert.querySelector(`[data-name="enrollment.${name}"]`)?.value;
  const still = cert.closest("fieldset:disabled");
  all("[data-unit]", cert).forEach((field) => { field.disabled = !still && field.dataset.unit !== chosen("renewal_period_units"); });
  all("[data-for]", cert).forEach((part) => { part.hidden = part.dataset.for !== chosen("proto"); });
}

// Brings the fields in `root` to what their values say.
export function ready(root) {
  all("[data-cert]", root).forEach(dependent);
  if (root.matches?.("[data-cert]")) dependent(root);
  all("[data-fingerprint]", root).forEach(fingerprint);
  all("[data-shows-https]", root).forEach(httpsPart);
  // fields that were kept while the form around them came anew
  all("[hx-preserve]", root).forEach((element) => {
    if (errorOf(element)?.textContent.trim()) element.setAttribute("aria-invalid", "true");
    else element.removeAttribute("aria-invalid");
  });
}

// A certificate more in the form of a profile; one less.
export function addCert(button) {
  const blank = document.getElementById("blank-cert").innerHTML.replaceAll("c999", `c${button.dataset.next}`);
  button.dataset.next = Number(button.dataset.next) + 1;
  const holder = document.getElementById("certs");
  holder.insertAdjacentHTML("beforeend", blank);
  ready(holder.lastElementChild);
  holder.lastElementChild.querySelector("[data-unique]").focus();
}

export function removeCert(button) {
  button.closest("[data-cert]").remove();
  uniqueNames();
  document.getElementById("add-cert").focus();
}
