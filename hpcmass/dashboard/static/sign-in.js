// Shows the token of the address once, and goes where the cookie it gets is good.
const said = document.getElementById('said'), form = document.getElementById('form'), field = document.getElementById('token');

async function enter(token) {
  let answer;
  try {
    answer = await fetch('sign-in', {method: 'POST', headers: {Authorization: `Bearer ${token}`}});
  } catch {
    return 'The dashboard does not answer. Is hpcmass dashboard still running?';
  }
  if (!answer.ok) return 'This token does not fit: it is made anew whenever hpcmass dashboard starts.';
  location.replace(`${(await answer.json()).room}/`);
  return 'Opening …';
}

async function begin() {
  const token = location.hash.slice(1);
  if (token) {
    history.replaceState(null, '', location.pathname); // It is not to stay in the address.
    said.textContent = await enter(token);
    if (said.textContent === 'Opening …') return;
  } else {
    said.textContent = 'Open the address that hpcmass dashboard has printed, or give the token that ends it.';
  }
  form.hidden = false;
  field.focus();
}

form.addEventListener('submit', async (event) => {
  event.preventDefault();
  said.textContent = await enter(field.value.trim());
});
begin();
